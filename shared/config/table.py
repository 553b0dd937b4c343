"""What all tables of a job file have in common."""

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """Frozen; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
