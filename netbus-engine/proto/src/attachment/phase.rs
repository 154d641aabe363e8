//! What an attachment is doing, and under which grant.

use std::time::Instant;

use crate::ids::{Epoch, Generation, Instance};
use crate::request::DeviceError;

/// One backend's turn: what its grant said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The lease's epoch; higher than that of every binding before.
    pub epoch: Epoch,
    /// The content's generation.
    pub generation: Generation,
    /// The device's instance.
    pub instance: Instance,
    /// Whether a change is answered only when it is durable.
    pub write_through: bool,
    /// Requests that may be in flight. Never more than the policy's, never less than one.
    pub max_requests: usize,
    /// Payload bytes that may be in flight. A single request may exceed it.
    pub max_bytes: usize,
}

/// What an attachment is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No backend; requests wait.
    Parked {
        /// When it gives up; `None` is never.
        until: Option<Instant>,
    },
    /// Requests go to this backend.
    Active(Binding),
    /// This backend finishes what it has; requests wait.
    Draining(Binding),
    /// Over. Every request is answered with this error.
    Faulted(DeviceError),
}

impl Phase {
    /// Whether `next` may follow this phase.
    #[must_use]
    pub fn may_become(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Parked { .. }, Self::Active(_) | Self::Faulted(_))
            | (Self::Active(_), Self::Draining(_) | Self::Parked { .. } | Self::Faulted(_))
            | (Self::Draining(_), Self::Parked { .. } | Self::Faulted(_)) => true,
            (Self::Parked { .. }, Self::Parked { .. } | Self::Draining(_))
            | (Self::Active(_), Self::Active(_))
            | (Self::Draining(_), Self::Active(_) | Self::Draining(_))
            | (Self::Faulted(_), Self::Parked { .. } | Self::Active(_) | Self::Draining(_) | Self::Faulted(_)) => false,
        }
    }

    /// The backend that may answer now.
    #[must_use]
    pub fn binding(&self) -> Option<&Binding> {
        match self {
            Self::Active(binding) | Self::Draining(binding) => Some(binding),
            Self::Parked { .. } | Self::Faulted(_) => None,
        }
    }
}

/// Why a backend was not bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Another backend is bound; drain it first. Nothing changed.
    #[error("The attachment still has a backend")]
    NotParked,
    /// The attachment is over. Nothing changed.
    #[error("The attachment has failed: {0}")]
    Faulted(DeviceError),
    /// The epoch is not higher than every earlier one. Nothing changed.
    #[error("Epoch {offered} was offered after epoch {highest}")]
    StaleEpoch {
        /// The refused binding's epoch.
        offered: Epoch,
        /// The highest epoch so far.
        highest: Epoch,
    },
    /// The content has changed hands since. The attachment faulted.
    #[error("The content has changed hands: generation {offered} was offered after generation {left}")]
    GenerationChanged {
        /// The refused binding's generation.
        offered: Generation,
        /// The generation of the last backend.
        left: Generation,
    },
    /// The device was opened anew, and acknowledged changes had not been made durable before, of which there is no log.
    /// The attachment faulted.
    #[error("The device was interrupted before acknowledged writes were durable")]
    LostWrites,
}
