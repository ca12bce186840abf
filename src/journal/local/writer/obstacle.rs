//! What keeps events out for a while: no room, a disk that does not take a write, a database that another process has
//! locked. Each refuses events under a reason of its own, and ends once a tick has seen that the write would succeed.

use std::io;

use super::room::SPARE;
use super::{State, Writer};
use crate::journal::local::ballast::is_no_room;
use crate::journal::local::store::{Commit, Passing, StoreError};
use crate::journal::outcome::Refused;

/// What refused the last group, and how many bytes that was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// `journal.max_bytes`.
    MaxBytes(u64),
    /// The disk has no room.
    Disk(u64),
    /// The write-ahead log, which a reader holds; and the disk has no room but to copy it back.
    Log(u64),
    /// The disk did not take a write.
    Write,
    /// The database is locked, or memory or file descriptors are used up.
    Busy,
}

impl Obstacle {
    pub(crate) fn refused(self) -> Refused {
        match self {
            Self::MaxBytes(_) | Self::Disk(_) | Self::Log(_) => Refused::Full,
            Self::Write => Refused::WriteError,
            Self::Busy => Refused::Busy,
        }
    }

    fn state(self) -> State {
        match self {
            Self::MaxBytes(_) | Self::Disk(_) | Self::Log(_) => State::Full,
            Self::Write => State::WriteError,
            Self::Busy => State::Busy,
        }
    }

    /// Whether the same is in the way, for however many bytes.
    fn is_same(self, other: Self) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

impl Writer {
    /// Whether nothing may be written but what a full disk keeps room for.
    pub(crate) fn is_blocked(&self) -> bool {
        !matches!(self.obstacle, None | Some((Obstacle::MaxBytes(_), _)))
    }

    /// The refusal of everything that needs the store, while it is blocked.
    pub(crate) fn refusal(&self) -> Refused {
        self.obstacle.as_ref().map_or(Refused::Full, |(obstacle, _)| obstacle.refused())
    }

    /// What is in the way of a write of about `bytes` that failed so, and the cause in words.
    ///
    /// # Errors
    /// When it is final.
    pub(crate) fn obstacle_of(&mut self, bytes: u64, error: StoreError) -> Result<(Obstacle, String), String> {
        let (why, mut reason) = match error {
            StoreError::Passing { why, reason } => (why, reason),
            StoreError::Fatal(reason) => return Err(reason),
        };
        let obstacle = match why {
            Passing::NoRoom => Obstacle::Disk(bytes),
            Passing::LogHeld => {
                let holders = self.lock_holders();
                if !holders.is_empty() {
                    reason = format!("{reason}; close the program that reads it, one of the processes {holders}");
                }
                Obstacle::Log(bytes)
            }
            Passing::Busy => {
                let holders = self.lock_holders();
                if !holders.is_empty() {
                    reason = format!("{reason}; other processes with locks on it: {holders}");
                }
                Obstacle::Busy
            }
            // SQLite keeps the number of the error to itself, and a quota that is used up comes as this one.
            Passing::Write => match self.recovered.ballast.as_ref().map(|ballast| ballast.fits(bytes)) {
                Some(Err(error)) if is_no_room(&error) => {
                    reason = error.to_string();
                    Obstacle::Disk(bytes)
                }
                Some(Err(error)) => {
                    reason = format!("{reason}: {error}");
                    Obstacle::Write
                }
                _ => Obstacle::Write,
            },
        };
        Ok((obstacle, reason))
    }

    /// A write of about `bytes` failed: events are refused until it would succeed, and the best is made of a full disk.
    ///
    /// # Errors
    /// When it is final.
    pub(crate) fn hindered(&mut self, bytes: u64, error: StoreError) -> Result<(), String> {
        let (obstacle, reason) = self.obstacle_of(bytes, error)?;
        self.hindered_by(obstacle, &reason)
    }

    /// The same, once it is known what is in the way.
    pub(crate) fn hindered_by(&mut self, obstacle: Obstacle, reason: &str) -> Result<(), String> {
        self.stop_at(obstacle, reason);
        match obstacle {
            Obstacle::Disk(_) | Obstacle::Log(_) => self.make_the_best_of_a_full_disk(None),
            _ => Ok(()),
        }
    }

    /// A write failed: refuses events from now on.
    pub(crate) fn stop_at(&mut self, obstacle: Obstacle, reason: &str) {
        self.metrics.journal_errors.get_or_create(&[("reason", obstacle.refused().word())]).inc();
        self.face(obstacle, reason);
    }

    fn face(&mut self, obstacle: Obstacle, reason: &str) {
        self.look_at_disk();
        let reason = match (obstacle, &self.disk) {
            (Obstacle::Disk(bytes), Some(disk)) if disk.free_bytes > bytes.saturating_add(SPARE) => {
                format!("{reason}: {disk}, so a quota or its inodes are used up")
            }
            (Obstacle::Disk(_) | Obstacle::Log(_) | Obstacle::Write, Some(disk)) => format!("{reason}: {disk}"),
            _ => reason.to_owned(),
        };
        let before = self.obstacle.replace((obstacle, reason.clone()));
        if before.is_none_or(|(before, _)| !before.is_same(obstacle)) {
            tracing::error!(reason, "the journal cannot take events: they are answered 503 until it can");
            // The state comes last: the status says why from then on.
            self.publish();
            self.shared.state.send_replace(obstacle.state());
        }
    }

    /// Takes events again, if what was in the way is gone.
    pub(crate) fn try_again(&mut self) -> Result<(), String> {
        let Some((obstacle, _)) = self.obstacle else { return Ok(()) };
        let mut gone = self.is_gone(obstacle);
        if let (Obstacle::Disk(bytes), Err(StoreError::Passing { why, .. })) = (obstacle, &gone)
            && *why != Passing::LogHeld
        {
            self.make_the_best_of_a_full_disk(Some(bytes))?;
            gone = self.is_gone(obstacle);
        }
        match gone {
            Ok(true) => {
                self.obstacle = None;
                tracing::info!("the journal takes events again");
                self.publish();
                self.shared.state.send_replace(State::Open);
            }
            Ok(false) => {}
            Err(error) => {
                let bytes = match obstacle {
                    Obstacle::MaxBytes(bytes) | Obstacle::Disk(bytes) | Obstacle::Log(bytes) => bytes,
                    Obstacle::Write | Obstacle::Busy => 0,
                };
                let (obstacle, reason) = self.obstacle_of(bytes, error)?;
                self.face(obstacle, &reason);
            }
        }
        Ok(())
    }

    fn is_gone(&mut self, obstacle: Obstacle) -> Result<bool, StoreError> {
        match obstacle {
            Obstacle::MaxBytes(bytes) => self.room_for(bytes).map(|room| room.is_some()),
            Obstacle::Disk(bytes) => self.disk_has_room(bytes).map(|()| true),
            Obstacle::Log(bytes) => {
                // Its reader may be gone: then its room is given back. What is left of it shows in the room that it needs.
                match self.recovered.store.shrink_log() {
                    Ok(_) | Err(StoreError::Passing { .. }) => self.disk_has_room(bytes).map(|()| true),
                    Err(fatal) => Err(fatal),
                }
            }
            Obstacle::Write | Obstacle::Busy => {
                self.disk_has_room(0)?;
                self.write_nothing().map(|()| true)
            }
        }
    }

    /// A commit that changes nothing but a revision, and a checkpoint: whether both files can be written to.
    fn write_nothing(&mut self) -> Result<(), StoreError> {
        let mut state = self.recovered.state.clone();
        state.revision += 1;
        let places = self.dirty.keys().filter_map(|sink| Some((&**sink, self.recovered.places.get(sink)?))).collect();
        self.recovered.store.commit(&Commit { places, state: Some(&state), ..Commit::default() })?;
        self.recovered.state = state;
        self.clean();
        self.recovered.store.checkpoint()
    }
}

/// What a probe of the disk found.
pub(crate) fn probed(error: io::Error) -> StoreError {
    let why = if is_no_room(&error) { Passing::NoRoom } else { Passing::Write };
    StoreError::Passing { why, reason: error.to_string() }
}
