"""flexref's greedy generation against the oracle's own `generate`: where rows end, and why."""

from pathlib import Path

from oracle_kit import torch
from oracle_kit.checkpoints import PAD, SMALL_GALACTICA, load_oracle, new_model
from oracle_kit.compare import HOME, STEPS, STREAMED, Oracle, run_flexref, weight_file

from flexref.engine.request import Request

PROMPTS = [[5], [PAD, PAD, 9, 0, 2, 60], [40, PAD, 8]]
"""Token ids are taken as they are: ids that elsewhere pad or begin a text are tokens like any other."""


def test_a_row_has_the_token_after_the_last_position_as_the_oracle_has(tmp_path: Path) -> None:
    """A prompt may fill all positions: what follows is chosen, and never read."""
    model = new_model(SMALL_GALACTICA)
    model.save_pretrained(tmp_path)
    path, positions = weight_file(tmp_path), model.config.max_position_embeddings
    full = [5 + place % 40 for place in range(positions)]
    oracle, prompts = Oracle(load_oracle(tmp_path), path), [full, full[:-2]]
    for policy in (HOME, STREAMED):
        run = run_flexref(path, prompts, Request(STEPS, ignore_eos=True), policy)
        assert [len(generated) for generated in run.token_ids] == [1, 3]
        assert run.finish_reasons == ["length", "length"]
        oracle.check(prompts, run)


def test_rows_end_where_the_oracle_ends_them(tmp_path: Path) -> None:
    model = new_model(SMALL_GALACTICA)
    model.save_pretrained(tmp_path / "endless")
    endless = run_flexref(weight_file(tmp_path / "endless"), PROMPTS, Request(STEPS, ignore_eos=True), HOME)
    # Each of the first two rows has an end token that it reaches as late as may be, and the third has none.
    first, second, third = endless.token_ids
    ends = [max(set(row) - {*other, *third}, key=row.index) for row, other in ((first, second), (second, first))]
    model.config.eos_token_id = model.generation_config.eos_token_id = ends
    model.save_pretrained(tmp_path)
    path, loaded = weight_file(tmp_path), load_oracle(tmp_path)
    oracle, found = Oracle(loaded, path), []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        whole = loaded.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=STEPS, do_sample=False)
        found.append(whole[0, len(prompt) :].tolist())
    for policy in (HOME, STREAMED):
        run = run_flexref(path, PROMPTS, Request(STEPS), policy)
        oracle.check(PROMPTS, run)
        for number, (generated, expected) in enumerate(zip(run.token_ids, found, strict=True)):
            if oracle.reference(PROMPTS[number], generated).decided.all():
                assert generated == expected
            assert run.finish_reasons[number] == ("stop" if generated[-1] in ends else "length")
        assert [generated[-1] for generated in run.token_ids[:2]] == ends
        assert all(8 < len(generated) < STEPS for generated in run.token_ids[:2])
        assert len(run.token_ids[2]) == STEPS
