"""Snapshot of a layer's records with the three scores of the design, by default settings."""

from esper.contracts.performance import SeedPerformanceMetrics
from esper.records.layer import LayerRecord
from esper.records.seed import SeedRecord
from esper.strategies.scoring import standardise
from esper.strategies.thompson import Thompson
from esper.strategies.ucb import UCB


def snapshot(layer: LayerRecord, decay_factor: float) -> dict[int, SeedPerformanceMetrics]:
    """Copy of every seed's record, scored by ``ucb``, ``thompson`` and recent performance.

    Args:
        layer: The live record.
        decay_factor: Weight of an outcome relative to the one after it, as the history has it.
    """
    seeds = sorted(layer.seeds)
    bounds = UCB().scores(seeds, layer.seeds)
    posteriors = Thompson().posteriors(seeds, layer.seeds)
    centre, scale, _ = standardise(layer.seeds)
    found = {}
    for seed in seeds:
        record, (alpha, beta) = layer.seeds[seed], posteriors[seed]
        copy = found[seed] = _copy(record, decay_factor)
        copy.ucb_score = bounds[seed]
        copy.thompson_score = alpha / (alpha + beta)
        copy.performance_score = (record.recent - centre) / scale if record.count else 0.0
    return found


def _copy(record: SeedRecord, decay_factor: float) -> SeedPerformanceMetrics:
    rewards, accuracies, losses = record.measured()
    latencies, memory = record.timed()
    return SeedPerformanceMetrics(
        seed_idx=record.seed_idx,
        layer_name=record.layer_name,
        kernel_id=record.kernel_id,
        accuracy_improvements=accuracies,
        loss_reductions=losses,
        execution_latencies=latencies,
        memory_usage=memory,
        total_activations=record.total_activations,
        successful_grafts=record.successful_grafts,
        failed_attempts=record.failed_attempts,
        last_activation_epoch=record.last_activation_epoch,
        blueprint=record.blueprint,
        rewards=rewards,
        total_outcomes=record.outcomes,
        recent_reward=record.recent,
        decay_factor=decay_factor,
    )
