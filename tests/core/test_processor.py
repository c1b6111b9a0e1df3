"""What the CPU says it can do."""

from rdcd_jax.core import processor


def test_instructions_are_whole_names(tmp_path, monkeypatch):
    stored = tmp_path / "cpuinfo"
    stored.write_text("processor\t: 0\nflags\t\t: sse4_2 avx512_vnni\nbugs\t\t: avx2\n")
    monkeypatch.setattr(processor, "_CPUINFO", stored)
    processor.instructions.cache_clear()
    try:
        assert processor.instructions() == {"sse4_2", "avx512_vnni"}
        processor.instructions.cache_clear()
        monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "none")
        assert processor.instructions() == frozenset()
    finally:
        processor.instructions.cache_clear()
