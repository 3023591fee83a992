"""The race: its judgement, its rules and its tables, without a clock."""

import numpy as np
import pytest

from benchmarks.race import figures, report
from benchmarks.race.cells import GROUPS, Cell, grid
from benchmarks.race.criteria import ratio, verdicts
from benchmarks.race.driver import Driver
from benchmarks.race.peers import PEERS, TOLERANCE, marginal_error, ours
from benchmarks.race.records import OK, SLOW, Record, Run
from benchmarks.race.worker import objective
from otbilevel.testing import FAMILIES

CELL = Cell("cloud-2d", 1000, 0, 1e-3)


def make_run(*records: Record, groups: tuple[str, ...] = ("clouds",), commit: str = "abc") -> Run:
    settings = {"budget": 30.0, "turns": 1, "missing": [], "tolerance": TOLERANCE}
    known = {"machine": "a machine", "date": "2026-01-01", "versions": {"numpy": "2"}, "settings": settings, "commit": commit}
    return Run(known, list(groups), ["otbilevel sns"], list(records))


def solved(contestant: str, cpu: float, cell: Cell = CELL, threads: int = 1) -> Record:
    return Record(
        cell,
        contestant,
        threads,
        OK,
        [cell.size, cell.size],
        cpu,
        cpu,
        [(cpu, cpu)],
        1e-10,
        {"objective": 0.5, "status": "SUCCESS"},
    )


def failed(contestant: str, cell: Cell = CELL) -> Record:
    return Record(cell, contestant, 1, SLOW)


def test_no_cell_is_in_two_groups():
    """The records of several runs are put together by cell, and a ratio must not come from two of them."""
    cells = [cell for group in GROUPS.values() for cell in group.cells]
    assert len(cells) == len(set(cells))


def test_every_cell_of_every_group_belongs_to_a_family():
    assert {cell.family for group in GROUPS.values() for cell in group.cells} <= set(FAMILIES)
    assert all(group.quick().cells for group in GROUPS.values())


@pytest.mark.parametrize("contestant", ours("sns"), ids=lambda contestant: contestant.name)
def test_ours_meets_the_tolerance_whatever_it_hands_over(contestant):
    problem = FAMILIES["mixture-1d"](60, 0)
    answer = contestant.prepare(problem, 1e-2, 100.0)()
    assert marginal_error(answer.plan(), problem) <= TOLERANCE
    assert answer.figures["status"] == "SUCCESS"


@pytest.mark.filterwarnings("ignore:Sinkhorn did not converge")  # while it is calibrated
@pytest.mark.parametrize("name", ["POT sinkhorn", "POT stabilized", "POT log", "POT emd"])
def test_pot_meets_the_tolerance(name):
    pytest.importorskip("ot")
    problem = FAMILIES["assignment"](40, 0)
    peer = next(peer for peer in PEERS if peer.name == name)
    assert marginal_error(peer.prepare(problem, 0.1, 100.0)().plan(), problem) <= TOLERANCE


def test_judgement_of_a_plan():
    problem = FAMILIES["assignment"](10, 0)
    product = np.outer(problem.a, problem.b)
    assert marginal_error(product, problem) < 1e-15
    assert objective(product, problem, 0.1) == pytest.approx(np.vdot(product, problem.C))  # KL = 0
    product[0, 0] += 1e-3
    assert marginal_error(product, problem) == pytest.approx(2e-3)
    product[0, 0] = np.nan
    assert marginal_error(product, problem) == np.inf


def test_harder_cells():
    assert Cell("cloud-2d", 1000, 3, 1e-4).harder_than(CELL)
    assert Cell("cloud-2d", 2000, 0, 1e-3).harder_than(CELL)
    assert not CELL.harder_than(CELL)
    assert not Cell("cloud-2d", 2000, 0, 1e-2).harder_than(CELL)
    assert not Cell("cloud-3d", 2000, 0, 1e-4).harder_than(CELL)
    assert not Cell("assignment", 2000, 0, 1e-3).harder_than(Cell("assignment", 1000, 0, 1e-3))


def test_who_ran_out_of_time_sits_out_harder_cells_and_more_seeds():
    run = make_run(failed("POT sinkhorn"), failed("otbilevel sns"))
    driver = Driver(run, [], 30.0, 1, print, lambda: None)
    driver.threads = 1
    pot = next(peer for peer in PEERS if peer.name == "POT sinkhorn")
    harder, other = Cell("cloud-2d", 1000, 0, 1e-4), Cell("cloud-2d", 1000, 2, 1e-3)
    assert driver.hopeless(harder, pot)
    assert not driver.hopeless(harder, ours("sns")[0])  # ours has no excuse
    assert not driver.hopeless(other, pot)
    run.add(failed("POT sinkhorn", Cell("cloud-2d", 1000, 1, 1e-3)))
    assert driver.hopeless(other, pot)


def test_ratio_to_the_best_peer_or_to_the_budget():
    run = make_run(solved("otbilevel sns", 0.1), solved("POT sinkhorn", 4.0), solved("mdot", 2.0), solved("POT emd", 0.5))
    assert ratio(run, CELL, peers=run.peers(exact=False)) is None  # ours to the potentials is missing
    run.add(solved("otbilevel sns, potentials", 0.1))
    found = ratio(run, CELL, peers=run.peers(exact=False))
    assert (found.peer, found.value) == ("mdot", pytest.approx(20.0))
    assert ratio(run, CELL, peers=run.peers(exact=True)).value == pytest.approx(5.0)
    run.add(solved("otbilevel sns, potentials", 0.05))
    assert ratio(run, CELL, peers=run.peers(exact=False)).value == pytest.approx(40.0)  # like for like
    bound = ratio(make_run(solved("otbilevel sns", 0.1), failed("mdot")), CELL, peers=["mdot"])
    assert (bound.peer, bound.value) == (None, pytest.approx(300.0))
    assert ratio(make_run(failed("otbilevel sns"), solved("mdot", 1.0)), CELL, peers=["mdot"]) is None


def test_verdicts_need_measurements_and_convergence():
    assert {verdict.kept for group in GROUPS for verdict in verdicts(make_run(), group)} == {None}
    good = make_run(solved("otbilevel sns", 0.1), solved("otbilevel sns, potentials", 0.1), solved("mdot", 3.0))
    assert all(verdict.kept for verdict in verdicts(good, "clouds"))
    other = Cell("cloud-2d", 500, 0, 1e-3)
    bad = make_run(*good.records, Record(other, "otbilevel sns", 1, "not converged", error=1e-3))
    assert [verdict.kept for verdict in verdicts(bad, "clouds")] == [True, False, False]


def test_what_is_saved_is_read_and_later_files_count(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    make_run(solved("otbilevel sns", 0.1), solved("mdot", 2.0)).save(first)
    make_run(solved("otbilevel sns", 0.2), groups=("easy",), commit="def").save(second)
    run = Run.load([first, second])
    assert run.groups == ["clouds", "easy"]
    assert run.find(CELL, "otbilevel sns", 1).cpu == 0.2
    assert run.find(CELL, "mdot", 1).times == solved("mdot", 2.0).times
    assert run.find(CELL, "mdot", 1).figures["budget"] == 30.0
    assert run.find(CELL, "mdot", 1).figures["commit"] == "abc"
    assert "Budget 30 s, turns 1, commit def." in report.render(run, [])


def test_wall_times_are_shown_where_there_are_any():
    one = [solved("otbilevel sns", 0.1), solved("POT sinkhorn", 2.0)]
    assert "wall" not in report.render(make_run(*one), [])
    page = report.render(make_run(*one, solved("otbilevel sns", 0.05, threads=2), solved("POT sinkhorn", 1.5, threads=2)), [])
    assert "| 50 | 1500 (POT sinkhorn) | 30 |" in page
    other = Cell("cloud-2d", 2000, 0, 1e-3)
    some = [
        *one,
        solved("otbilevel sns", 0.05, threads=2),
        solved("POT sinkhorn", 1.5, threads=2),
        solved("otbilevel sns", 0.4, other),
    ]
    page = report.render(make_run(*some, solved("POT sinkhorn", 8.0, other), solved("otbilevel sns", 0.2, other, threads=2)), [])
    assert "| 200 | - | - |" in page


def test_page_and_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    cells = grid(("cloud-2d",), (500, 1000, 2000), (1e-3, 2e-4, 1e-4))
    records = [solved("otbilevel sns", cell.size**2 * 1e-7, cell) for cell in cells]
    records += [solved("mdot", cell.size**3 * 1e-9, cell) for cell in cells[:-1]] + [failed("mdot", cells[-1])]
    records += [solved("otbilevel sns, potentials", cell.size**2 * 1e-7, cell) for cell in cells]
    run = make_run(*records)
    run.methods.append("otbilevel sns, potentials")
    pictures = figures.draw(run, tmp_path)
    page = report.render(run, pictures)
    assert {path.name for path in tmp_path.glob("*.svg")} == {picture.file for picture in pictures}
    assert "| cloud-2d, reg 0.001 | otbilevel sns | 2.00 |" in page
    assert "| cloud-2d, reg 0.001 | mdot | 3.00 |" in page
    assert "| cloud-2d n=2000 | 0.0001 | 400 | 400 | x | > 75 |" in page
