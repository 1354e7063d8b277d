//! What has happened, as no part of the product knows it.

/// What no part of the product knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Past {
    /// Containers whose memory was resumed on the destination, by bit.
    pub restores: u8,
    /// The replacement has run from its base image before the confirmation.
    pub cold: bool,
    /// The source has executed since it was dumped.
    pub ran_on: bool,
    /// The last running or frozen copy was lost by a user's own hand or as any pod is lost with its node.
    pub excused: bool,
    /// The source node, or the destination, has lost the memory with its disk or its registry, and has not got it again.
    pub disks_lost: [bool; 2],
    /// A container was ended since its memory did not come.
    pub spoilt: bool,
    /// Drover has deleted the released replacement without a verdict.
    pub deleted_in_doubt: bool,
    pub wrongs: Wrongs,
}

/// What must never happen, each a bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Wrongs(pub u16);

impl Wrongs {
    pub const VERDICT_REWRITTEN: u16 = 1;
    pub const THAWED_AFTER_VOTE: u16 = 2;
    pub const STALE_RESTORE: u16 = 4;
    pub const FALSE_COMMIT: u16 = 8;
    pub const FOREIGN_THAW: u16 = 16;
    pub const REWOUND: u16 = 32;
    pub const KILLED_EARLY: u16 = 64;
    pub const FORGED: u16 = 128;
    pub const COPY_ENDED: u16 = 256;
    pub const REPEATED: u16 = 512;
    pub const ANOTHER_POD: u16 = 1024;
    pub const COPY_SURPLUS: u16 = 2048;
    pub const JOB_FAILED: u16 = 4096;
    pub const OUTSTANDING: u16 = 8192;

    pub fn add(&mut self, wrong: u16) {
        self.0 |= wrong;
    }

    pub fn has(self, wrong: u16) -> bool {
        self.0 & wrong != 0
    }
}
