"""Growing from end to end."""





def test_grows_until_the_depth_ends(growing, tmp_path, reference):
    history = growing(margin=0.0)
    print(history.table(), history.conclusion())
