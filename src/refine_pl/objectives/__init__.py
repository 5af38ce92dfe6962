"""Objectives of post-training: what one optimizer step on the answers of a batch minimises."""

from refine_pl.objectives.base import AnswerObjective
from refine_pl.objectives.supervised import SupervisedAnswers
from refine_pl.objectives.task_reward import TaskReward

__all__ = ["AnswerObjective", "SupervisedAnswers", "TaskReward"]
