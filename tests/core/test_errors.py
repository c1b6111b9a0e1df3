from rdcd_jax.core.errors import one_line


def test_foreign_text_stays_on_one_line():
    assert one_line("été 鳥.jpg: gone.") == "été 鳥.jpg: gone."
    assert one_line("a\nb\x1b[2J\x00\u2028\udcff") == "a\\nb\\x1b[2J\\x00\\u2028\\udcff"


def test_long_text_keeps_its_beginning_and_its_end():
    stored = one_line(f"bad.csv: the id {'x' * 100_000} is unknown; give others.")
    assert stored.startswith("bad.csv: the id x") and stored.endswith("; give others.")
    assert len(stored) < 1600 and " ... " in stored
    assert len(one_line("\x00" * 1500)) < 1600
