"""The GPU table: the names that CUDA gives are found, and no other."""

import docstring_parser
import pytest

from inheritune_lit.planning.args import PlanArgs
from inheritune_lit.train.gpus import GPUS, find_gpus, peak_flops

A100, H100, H100_PCIE = 312, 989, 756
KNOWN = {  # as CUDA gives them: TFLOP/s of the makers' data sheets, dense
    "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA GeForce RTX 3090 Ti": 80,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA L4": 121,
    "NVIDIA L40": 181,
    "NVIDIA L40S": 362,
    "NVIDIA A10G": 70,
    "NVIDIA A40": 149.7,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA RTX 6000 Ada Generation": 364,
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 503.8,
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": 503.8,
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "A100-SXM4-40GB": A100,  # older drivers leave the maker out
    "NVIDIA A100-PCIE-40GB": A100,
    "NVIDIA A100 80GB PCIe": A100,
    "NVIDIA A800-SXM4-80GB": A100,
    "NVIDIA A800 80GB PCIe": A100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H100 PCIe": H100_PCIE,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H800": H100,
    "NVIDIA H800 PCIe": H100_PCIE,
    "NVIDIA H20": 148,
    "NVIDIA H200": H100,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA GH200 480GB": H100,
    "NVIDIA B200": 2250,
}
UNKNOWN = [
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "NVIDIA A100-SXM-64GB",  # made for one supercomputer, with more cores
    "NVIDIA A100-40C",  # a virtual part of one
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    "Quadro RTX 6000",
    "NVIDIA A10",
    "NVIDIA RTX 4000 Ada Generation",
    "NVIDIA GB200",
    "Tesla V100-SXM2-16GB",
    "Tesla T4",
    "NVIDIA",
    "",
]


@pytest.mark.parametrize(("name", "teraflops"), KNOWN.items())
def test_names_that_cuda_gives(name, teraflops):
    assert peak_flops(name) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize("name", UNKNOWN)
def test_no_other_gpu_is_taken_for_one_of_these(name):
    assert peak_flops(name) is None


def test_names_that_users_type():
    gigabytes = {gpu.name: gpu.memory / 1e9 for gpu in GPUS}
    assert gigabytes | {"rtx5090": 32, "l40": 48, "rtx6000-ada": 48, "rtx-pro-6000": 96, "h200-nvl": 141} == gigabytes
    for name in gigabytes:
        assert [gpu.name for gpu in find_gpus(name.upper())] == [name]


def test_help_names_them_all():
    params = docstring_parser.parse_from_object(PlanArgs).params
    [told] = [param.description for param in params if param.arg_name == "gpu"]
    listed = " ".join(told.split()).removeprefix("GPU: ").partition(", or this machine's cpu")[0]
    assert listed.replace(" or ", ", ").split(", ") == [gpu.name for gpu in GPUS]
