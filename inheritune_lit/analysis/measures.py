"""What each measure is: formula, source and unit."""

MEASURES: dict[str, dict[str, str]] = {
    name: {"formula": formula, "source": source, "unit": unit}
    for name, formula, source, unit in (
        (
            "attention_rank",
            "k* = min k: the k largest squared singular values of the attention matrix hold a share tau of them all",
            "Sanyal et al. 2024, arXiv 2404.08634v2, Section 2",
            "singular values",
        ),
        (
            "attention_mass",
            "m* = min m: the m heaviest columns hold a share tau of the squared Frobenius norm",
            "Sanyal et al. 2024, arXiv 2404.08634v2, Section 2",
            "columns",
        ),
        ("entropy", "mean over rows of -sum_j a_j ln a_j", "Zhai et al. 2023, arXiv 2303.06296, Section 3", "nats"),
        (
            "entropy_without_sink",
            "entropy of the rows without the first token, scaled to sum up to 1",
            "Zhai et al. 2023, arXiv 2303.06296, without the sink of Xiao et al. 2023, arXiv 2309.17453",
            "nats",
        ),
        ("sink_mass", "mean attention to the first token", "Gu et al. 2024, arXiv 2410.10781, Section 3", "share"),
        (
            "head_output_norm",
            "mean over tokens of |W_O A V|_2, for one head",
            "Kobayashi et al. 2020, arXiv 2004.10102",
            "norm",
        ),
        (
            "block_influence",
            "1 - mean over tokens of cos(x_l, x_(l+1))",
            "Men et al. 2024, arXiv 2403.03853, Eq. 1",
            "1 - cosine",
        ),
        ("output_variance", "variance of the entries of x_(l+1)", "Sun et al. 2025, arXiv 2502.05795", "variance"),
        (
            "angular_distance",
            "arccos(cos(x_l, x_(l+n))) / pi, of the last token",
            "Gromov et al. 2024, arXiv 2403.17887, Section 3.1",
            "angle / pi",
        ),
        (
            "logit_lens_loss",
            "cross-entropy of head(norm(x_n)): the first n layers without training",
            "nostalgebraist 2020, the logit lens",
            "nats a token",
        ),
        (
            "drop_loss",
            "cross-entropy with the layers left out",
            "Veit et al. 2016, arXiv 1605.06431, Section 4.1",
            "nats a token",
        ),
        (
            "drop_increase",
            "drop_loss - the loss of the whole model on the same sequences",
            "Veit et al. 2016, arXiv 1605.06431, Section 4.1",
            "nats a token",
        ),
        (
            "grad_norm_q",
            "|dloss/dW_Q|_F, a sequence at a time",
            "Noci et al. 2022, arXiv 2206.03126; arXiv 2404.08634v2, Section 2",
            "norm",
        ),
        (
            "grad_norm_k",
            "|dloss/dW_K|_F, a sequence at a time",
            "Noci et al. 2022, arXiv 2206.03126; arXiv 2404.08634v2, Section 2",
            "norm",
        ),
        (
            "max_rank",
            "v2: mean over sequences of max over heads of k*; v4: max over heads of mean over sequences of k*",
            "arXiv 2404.08634v2, Section 2; arXiv 2404.08634v4",
            "singular values",
        ),
        ("max_mass", "as max_rank, of m*", "arXiv 2404.08634v2, Section 2; arXiv 2404.08634v4", "columns"),
        ("avg_rank", "mean over sequences and heads of k*", "arXiv 2404.08634v4", "singular values"),
        ("avg_mass", "mean over sequences and heads of m*", "arXiv 2404.08634v4", "columns"),
    )
}
