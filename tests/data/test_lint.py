from datasets import Dataset

from burnish.data.lint import lint_preferences


def row(row_id, prompt, chosen, rejected):
    return {
        "row_id": row_id,
        "prompt_input_ids": prompt,
        "chosen_input_ids": chosen,
        "chosen_loss_mask": [True] * len(chosen),
        "rejected_input_ids": rejected,
        "rejected_loss_mask": [True] * len(rejected),
    }


def balanced(num_rows=40):
    return [row(i, [1, i], [2, 3] if i % 2 else [2], [4] if i % 2 else [4, 5]) for i in range(num_rows)]


def found(rows, **evaluation):
    datasets = {name: Dataset.from_list(held_out) for name, held_out in evaluation.items()}
    return {finding.code: finding for finding in lint_preferences(Dataset.from_list(rows), datasets)}


def test_clean_rows_have_no_finding():
    assert found(balanced(), test=[row(0, [1, 99], [2], [3])]) == {}


def test_duplicates_and_contradictions():
    rows = [*balanced(), row(90, [1, 0], [2], [4, 5]), row(91, [1, 1], [4], [2, 3])]
    findings = found(rows)
    assert set(findings) == {"duplicate_rows", "contradicting_pairs"}
    assert findings["duplicate_rows"].rows == (90,)
    assert findings["contradicting_pairs"].rows == (91,)


def test_length_bias_both_ways():
    longer = [row(i, [1, i], [2, 3], [4]) for i in range(20)]
    assert found(longer)["length_bias"].count == 20
    assert found(longer)["length_bias"].rows == (0, 1, 2, 3, 4)
    assert "shorter" in found([row(i, [1, i], [2], [4, 5]) for i in range(20)])["length_bias"].message
    assert found(longer[:19]) == {}


def test_prompts_shared_with_evaluation():
    finding = found(balanced(), test=[row(5, [1, 3], [7], [8]), row(6, [1, 77], [7], [8])])["eval_overlap"]
    assert (finding.count, finding.rows) == (1, (5,))
    assert "test" in finding.message
