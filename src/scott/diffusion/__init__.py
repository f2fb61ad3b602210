"""What every other room stands on: noise schedules, predictions, the boundary condition and the grid."""

from scott.diffusion.boundary import ConsistencyFunction, apply_boundary, c_out, c_skip
from scott.diffusion.flow import FlowSchedule, is_flow, schedule_from_config
from scott.diffusion.grid import JumpGrid, equal_substeps
from scott.diffusion.prediction import Denoiser, prediction_name, to_x0
from scott.diffusion.schedule import DiscreteSchedule, NoiseSchedule
from scott.diffusion.tensors import expand_like, normal_like, time_like

__all__ = [
    "ConsistencyFunction",
    "Denoiser",
    "DiscreteSchedule",
    "FlowSchedule",
    "JumpGrid",
    "NoiseSchedule",
    "apply_boundary",
    "c_out",
    "c_skip",
    "equal_substeps",
    "expand_like",
    "is_flow",
    "normal_like",
    "prediction_name",
    "schedule_from_config",
    "time_like",
    "to_x0",
]
