//! How a node serves those that it feeds: what a primary and a replica are configured with alike.

use std::time::Duration;

use towline_wire::BLOCK;

use super::{Compress, ConfigError, PrimaryConfig, ReplicaConfig, bounds};
use crate::limits;
use crate::shard::Flow;

pub(super) struct Feeding {
    slot_idle_max: Option<Duration>,
    catch_up_max: Option<u64>,
    link_window_bytes: usize,
    lag_target: Option<u64>,
    compress: Compress,
}

impl PrimaryConfig {
    pub(super) const fn feeding(&self) -> Feeding {
        Feeding {
            slot_idle_max: self.slot_idle_max,
            catch_up_max: self.catch_up_max,
            link_window_bytes: self.link_window_bytes,
            lag_target: self.lag_target,
            compress: self.compress,
        }
    }

    /// How each shard sends.
    pub(crate) fn flow(&self) -> Flow {
        self.feeding().flow(self.shards)
    }
}

impl ReplicaConfig {
    pub(super) const fn feeding(&self) -> Feeding {
        Feeding {
            slot_idle_max: self.slot_idle_max,
            catch_up_max: self.catch_up_max,
            link_window_bytes: self.link_window_bytes,
            lag_target: None,
            compress: self.compress,
        }
    }

    /// How each of so many shards sends.
    pub(crate) fn flow(&self, shards: u32) -> Flow {
        self.feeding().flow(shards)
    }
}

impl Feeding {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.compress == Compress::Lz4 && !cfg!(feature = "lz4") {
            return Err(ConfigError::NotBuilt("lz4"));
        }
        bounds("link_window_bytes", self.link_window_bytes as u64, BLOCK as u64, limits::LINK_WINDOW_MAX)?;
        self.catch_up_max.map_or(Ok(()), |rate| bounds("catch_up_max", rate, limits::CATCH_UP_MAX_MIN, u64::MAX))?;
        self.lag_target.map_or(Ok(()), |lag| bounds("lag_target", lag, limits::LAG_TARGET_MIN, u64::MAX))?;
        let (min, max) = (limits::SLOT_IDLE_MIN.as_secs(), limits::SLOT_IDLE_MAX.as_secs());
        match self.slot_idle_max {
            Some(idle) if idle < limits::SLOT_IDLE_MIN || idle > limits::SLOT_IDLE_MAX => {
                Err(ConfigError::Bounds { field: "slot_idle_max in s", value: idle.as_secs(), min, max })
            }
            _ => Ok(()),
        }
    }

    fn flow(&self, shards: u32) -> Flow {
        Flow {
            catch_up_max: self.catch_up_max.map(|rate| Flow::share(rate, shards)),
            link_window: self.link_window_bytes as u64,
            lag_target: self.lag_target,
            compress: self.compress == Compress::Lz4,
        }
    }
}
