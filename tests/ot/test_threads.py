"""Work shared out over threads: the same result whoever does it, and nobody waits for ever."""

import importlib
import multiprocessing
import os
import threading

import numpy as np
import pytest

import otbilevel
from otbilevel.ot.kernels.cpu import atomic, team
from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.testing import FAMILIES

threads = importlib.import_module("otbilevel.ot.kernels.cpu.threads")

ROWS = 103


@kernel
def weighted_sums(low, high, sums, x, out):
    """out_i += 1, sums[0] += x times the rows' numbers. Returns how many rows there were."""
    for i in range(low, high):
        out[i] += 1.0
        for j in range(len(x)):
            sums[0, j] += i * x[j]
    return float(high - low)


@kernel
def fails_late(low, high, sums):
    """In every part but the first."""
    if low > 0:
        msg = "no"
        raise ValueError(msg)
    return 0.0


@kernel
def meets_others(low, high, sums, state, slot):
    """Wait until as many parts as state[slot + 1] are at work at the same time. Returns 1 if they met."""
    atomic.add(state, slot, 1)
    for _ in range(2_000_000):
        if atomic.load(state, slot) >= state[slot + 1]:
            return 1.0
        atomic.let_run(state[team.YIELD])
    return 0.0


@kernel
def lead_weighted_sums(state, bounds, sums, totals, jobs, x, out):
    """One job after the other, each with other numbers. Returns how many had the right sums and totals."""
    right, rows = 0, bounds[-1]
    for job in range(jobs):
        for j in range(len(x)):
            x[j] = job + j
        team.lead(state, weighted_sums, bounds, sums, totals, (x, out))
        exact = totals.sum() == rows
        for j in range(len(x)):
            exact &= sums[:, j].sum() == x[j] * (rows * (rows - 1) // 2)
        right += exact
    return right


@kernel
def lead_fails_late(state, bounds, sums, totals):
    """One job."""
    team.lead(state, fails_late, bounds, sums, totals, ())


@kernel
def lead_meets_others(state, bounds, sums, totals, slot):
    """One job."""
    team.lead(state, meets_others, bounds, sums, totals, (state, slot))


@pytest.fixture(params=[2, 3, 8])
def n_threads(request, force_threads):
    """So many threads for the smallest job."""
    return force_threads(request.param)


def over_rows():
    """Share out `weighted_sums` by way of the interpreter, and check what comes back."""
    x, out = np.arange(1.0, 6.0), np.zeros(ROWS)
    sums, total = threads.over_rows(weighted_sums, ROWS, 10**6, (2, 5), x, out)
    np.testing.assert_array_equal(out, np.ones(ROWS))
    np.testing.assert_array_equal(sums, [x * (ROWS * (ROWS - 1) / 2), np.zeros(5)])
    assert total == ROWS


def by_a_team(n_parts, jobs=1):
    """The same in compiled code."""
    out, sums, totals = np.zeros(ROWS), np.full((n_parts, 5 + team.PADDING), np.nan), np.empty(n_parts)
    with threads.Team(n_parts) as state:
        right = lead_weighted_sums(state, threads.shares(ROWS, n_parts), sums, totals, jobs, np.empty(5), out)
    assert right == jobs
    np.testing.assert_array_equal(out, np.full(ROWS, jobs))
    assert np.isnan(sums[:, 5:]).all()


def assert_all_are_free(n_threads):
    """Every thread of the pool can be had at the same time; at once, unless other programs use the cores."""
    barrier = threading.Barrier(n_threads)
    tasks = [threads._pool(os.getpid()).submit(barrier.wait, 300.0) for _ in range(n_threads - 1)]
    barrier.wait(300.0)
    for task in tasks:
        task.result(300.0)


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7])
@pytest.mark.parametrize("n_rows", [8, 9, 64, 103])
def test_parts_cover_the_rows_in_groups_of_four(n_rows, n_parts):
    bounds = threads.shares(n_rows, n_parts)
    assert len(bounds) == n_parts + 1 and bounds[0] == 0 and bounds[-1] == n_rows
    assert (np.diff(bounds) >= 0).all()
    assert (bounds[:-1][bounds[:-1] < n_rows] % 4 == 0).all()


def test_every_row_is_taken_once(n_threads):
    for _ in range(50):
        over_rows()
        by_a_team(n_threads, jobs=100)


def test_more_parts_than_threads(n_threads):
    by_a_team(3 * n_threads, jobs=100)


def meet(n_parts):
    """How many parts of a job met all others."""
    sums, totals = np.empty((n_parts, 1 + team.PADDING)), np.empty(n_parts)
    slot = team.FUNCTION + 4  # unused
    with threads.Team(n_parts) as state:
        state[slot + 1] = n_parts
        lead_meets_others(state, threads.shares(ROWS, n_parts), sums, totals, slot)
    return totals.sum()


def test_followers_take_part(n_threads):
    """No part ends before all have begun: they need as many threads."""
    assert meet(1) == 1  # compiles: followers would not wait that long
    assert any(meet(n_threads) == n_threads for _ in range(20))  # a leader who is kept waiting may lose some


def test_the_leader_does_alone_what_nobody_else_does(n_threads):
    """Every other thread is busy, and when it is free, there is no leader any more."""
    release, pool = threading.Event(), threads._pool(os.getpid())
    busy = [pool.submit(release.wait) for _ in range(n_threads - 1)]
    try:
        by_a_team(n_threads)
    finally:
        release.set()
    assert all(task.result(10.0) for task in busy)
    assert_all_are_free(n_threads)


def test_followers_leave_when_the_leader_fails(n_threads):
    with pytest.raises(ZeroDivisionError), threads.Team(n_threads) as state:
        _ = 1 / 0
    assert state[team.LEADING] == 0
    assert_all_are_free(n_threads)


def test_followers_leave_a_leader_who_forgets_them(n_threads):
    forgetful = threads.Team(n_threads)
    state = forgetful.__enter__()
    assert_all_are_free(n_threads)
    assert state[team.LEADING] == 1


def test_a_leader_who_is_gone_has_said_so(n_threads):
    """As when an interrupt strikes between two bytecodes."""
    state = threads.Team(n_threads).__enter__()
    assert state[team.LEADING] == 0


def test_a_job_has_so_many_parts_at_most():
    with pytest.raises(ValueError, match="65535 parts, got 65536"):
        threads.Team(2**16)


def test_many_leaders_at_a_time(n_threads):
    errors = []

    def work():
        try:
            for _ in range(50):
                over_rows()
                by_a_team(n_threads, jobs=10)
        except BaseException as error:
            errors.append(error)

    users = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(60.0)
        assert not user.is_alive()
    assert errors == []


def test_a_part_that_fails_is_reported(n_threads):
    bounds, sums, totals = threads.shares(ROWS, n_threads), np.empty((n_threads, 1 + team.PADDING)), np.empty(n_threads)
    with pytest.raises(MemoryError, match="kernel failed"), threads.Team(n_threads) as state:
        lead_fails_late(state, bounds, sums, totals)
    by_a_team(n_threads)


def test_followers_that_cannot_be_had_are_done_without(n_threads, monkeypatch):
    """No more threads, or an interpreter that shuts down."""
    pool, submitted = threads._pool(os.getpid()), []

    def submit(*args):
        if submitted:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        submitted.append(real(*args))

    real = pool.submit
    monkeypatch.setattr(pool, "submit", submit)
    by_a_team(n_threads + 1)
    assert submitted[0].result(10.0) is None


@pytest.mark.parametrize("n_problems", [1, 5, 64, 103])
def test_every_problem_is_solved_once(n_threads, n_problems):
    done = np.zeros(n_problems)

    def solve(low, high):
        done[low:high] += 1.0

    for k in range(20):
        threads.over_problems(solve, n_problems, 10**9)
        np.testing.assert_array_equal(done, k + 1)


def test_problems_do_not_wait_for_threads_that_others_have(n_threads):
    """Whoever has not begun when all is done is not waited for."""
    free, done = threading.Event(), []
    others = [threads._pool(os.getpid()).submit(free.wait, 300.0) for _ in range(n_threads - 1)]
    try:
        threads.over_problems(lambda low, high: done.extend(range(low, high)), 64, 10**9)
        assert sorted(done) == list(range(64)) and not free.is_set()
    finally:
        free.set()
    for other in others:
        assert other.result(300.0)


def test_problems_whose_solver_fails_are_reported(n_threads):
    def fails(low, high):
        msg = "no"
        raise ArithmeticError(msg)

    with pytest.raises(ArithmeticError):
        threads.over_problems(fails, 64, 10**9)


def test_problems_need_no_thread(n_threads, monkeypatch):
    def refuses(*args):
        msg = "can't start new thread"
        raise RuntimeError(msg)

    monkeypatch.setattr(threads._pool(os.getpid()), "submit", refuses)
    done = []
    threads.over_problems(lambda low, high: done.extend(range(low, high)), 64, 10**9)
    assert sorted(done) == list(range(64))


def test_an_interrupt_sends_the_followers_away(n_threads, monkeypatch):
    pool, submitted = threads._pool(os.getpid()), []

    def submit(*args):
        submitted.append((args[1], real(*args)))
        raise KeyboardInterrupt

    real = pool.submit
    with monkeypatch.context() as patch:
        patch.setattr(pool, "submit", submit)
        with pytest.raises(KeyboardInterrupt):
            by_a_team(n_threads)
    assert all(state[team.LEADING] == 0 for state, _ in submitted)
    assert_all_are_free(n_threads)


def test_who_runs_a_part_makes_no_difference(n_threads, monkeypatch):
    """Not one bit."""
    problem = FAMILIES["cloud-2d"](150, 0)

    def solve():
        return otbilevel.solve_ot(problem.a, problem.b, problem.C, reg=1e-3, method="sns", tol=1e-9)

    together = solve()
    assert together.nit_newton > 0
    monkeypatch.setattr(team, "follow", lambda state: None)
    alone = solve()
    np.testing.assert_array_equal(together.f, alone.f)
    np.testing.assert_array_equal(together.g, alone.g)


def _child(queue, n_threads):
    over_rows()
    by_a_team(n_threads, jobs=10)
    queue.put("done")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where POT finds and loads it
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(n_threads):
    by_a_team(n_threads, jobs=10)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue, n_threads), daemon=True)
    child.start()
    assert queue.get(timeout=60.0) == "done"
    child.join(10.0)
    assert child.exitcode == 0
