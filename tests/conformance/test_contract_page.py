"""docs/reference/driver-contract.md, the cases and the mutants name one another."""

import ast
import re
from collections.abc import Iterator

from cqrs_brokers_testkit.conformance import CASES
from tests.conformance.documents import REFERENCE, expected
from tests.conformance.mutant_runs import HERE

PAGE = (REFERENCE / "driver-contract.md").read_text(encoding="utf-8")
SENTENCE = re.compile(r"^\* \*\*(?P<number>[A-Z]\d+)\*\* (?P<text>.*?) — (?P<proof>.*)$", re.MULTILINE | re.DOTALL)


def sentences() -> dict[str, str]:
    """Of each sentence what stands behind the dash."""
    items = re.split(r"\n(?=\* \*\*|\n|#|\|)", PAGE)
    found = [SENTENCE.match(" ".join(item.split("\n")).strip()) for item in items if item.startswith("* **")]
    return {match["number"]: match["proof"] for match in found if match is not None}


def proofs(proof: str) -> Iterator[tuple[str, list[str]]]:
    """Each case of a sentence, with the mutants that it catches there."""
    for part in proof.split(";"):
        case, _, names = part.strip().partition(": ")
        yield case.strip("`"), [name.strip() for name in names.split(",")]


def test_every_sentence_has_its_own_number_and_a_proof() -> None:
    """A sentence with a number has a case and a mutant."""
    numbers = re.findall(r"^\* \*\*([A-Z]\d+)\*\*", PAGE, re.MULTILINE)
    assert len(numbers) == len(set(numbers))
    assert list(sentences()) == numbers


def test_cases_and_mutants_are_there_and_belong_together() -> None:
    """Each case exists, and each mutant behind it says that this case must catch it."""
    wrong = [
        (number, case, name)
        for number, proof in sentences().items()
        for case, names in proofs(proof)
        for name in names
        if case not in CASES or case not in expected().get(name, ("", ()))[1]
    ]
    assert wrong == []


def test_every_mutant_breaks_a_sentence() -> None:
    """A mutant that breaks no sentence of the contract breaks a rule that no author can read."""
    named = {name for proof in sentences().values() for _, names in proofs(proof) for name in names}
    assert set(expected()) - named == set()


def test_no_mutant_is_a_copy_of_another() -> None:
    """What a mutant does differently is done by it alone."""
    bodies: dict[str, str] = {}
    for file in sorted(path.name for path in HERE.glob("*_mutants.py")):
        for node in ast.parse((HERE / file).read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or not node.bases:
                continue
            does = [each for each in node.body if not isinstance(each, ast.Expr | ast.Assign | ast.AnnAssign)]
            assigned = [each for each in node.body if isinstance(each, ast.Assign)]
            settings = [each for each in assigned if "caught_by" not in ast.dump(each)]
            body = ast.dump(ast.Module([*does, *settings], []))
            if does or settings:
                assert body not in bodies, f"{node.name} is a copy of {bodies[body]}"
                bodies[body] = node.name
    assert len(bodies) > 90
