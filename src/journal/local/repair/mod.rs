//! What recovery does where not everything is as it was written: looks at all of it, and carries over what can be read.

pub(crate) mod carry;
pub(crate) mod examine;
pub(crate) mod remains;
pub(crate) mod salvage;
