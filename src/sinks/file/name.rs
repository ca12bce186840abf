//! The names of rotated files, by which their sink knows them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::sinks::compress::Compress;

const STAMP: StaticFormatDescription =
    format_description!("[year][month][day]T[hour][minute][second].[subsecond digits:3]Z");
/// The last year that a name can say.
const LAST_YEAR: i32 = 9999;
const TEMPORARY: &str = ".tmp";

/// By so many bytes the longest name of a rotated file is longer than the file's own.
pub(super) const LONGEST_SUFFIX: usize = ".20261122T161004.123Z.zst.tmp".len();

/// What a name has more than the file's own: `.20261122T161004.123Z` and what follows. They sort by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) at: PrimitiveDateTime,
    pub(super) form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    Plain,
    Compressed(Extension),
    /// On its way to be compressed.
    Temporary(Extension),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extension {
    Gz,
    Zst,
}

/// Whether a sink that writes to `base` takes a file called `name`, in the same folder, for one of its rotated files.
pub(in crate::sinks) fn is_rotated_from(name: &OsStr, base: &OsStr) -> bool {
    Name::parse(name, base).is_some()
}

impl Name {
    pub(super) fn plain(at: OffsetDateTime) -> Self {
        Self { at: PrimitiveDateTime::new(at.date(), at.time()), form: Form::Plain }
    }

    pub(super) fn parse(name: &OsStr, base: &OsStr) -> Option<Self> {
        let rest = name.as_bytes().strip_prefix(base.as_bytes())?.strip_prefix(b".")?;
        let (stamp, suffix) = std::str::from_utf8(rest).ok()?.split_at_checked("20261122T161004.123Z".len())?;
        let at = PrimitiveDateTime::parse(stamp, STAMP).ok()?;
        let form = Form::ALL.into_iter().find(|form| form.suffix() == suffix)?;
        Some(Self { at, form })
    }

    /// Whether there are names left that are later. A file of the last year would be the newest for good: a clock was
    /// wrong, or somebody else has made it.
    pub(super) fn has_later_ones(self) -> bool {
        self.at.year() < LAST_YEAR
    }

    /// The whole name of the file.
    pub(super) fn of(self, base: &OsStr) -> Result<OsString, time::error::Format> {
        let mut name = base.to_owned();
        name.push(".");
        name.push(self.at.format(STAMP)?);
        name.push(self.form.suffix());
        Ok(name)
    }
}

impl Form {
    const ALL: [Self; 5] = [
        Self::Plain,
        Self::Compressed(Extension::Gz),
        Self::Compressed(Extension::Zst),
        Self::Temporary(Extension::Gz),
        Self::Temporary(Extension::Zst),
    ];

    fn suffix(self) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Compressed(extension) => extension.suffix().to_owned(),
            Self::Temporary(extension) => extension.suffix().to_owned() + TEMPORARY,
        }
    }
}

impl Extension {
    pub(super) fn of(compress: Compress) -> Option<Self> {
        match compress {
            Compress::None => None,
            Compress::Gzip => Some(Self::Gz),
            Compress::Zstd => Some(Self::Zst),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Gz => ".gz",
            Self::Zst => ".zst",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_by_the_file_it_was_rotated_from() {
        let is = |name: &str, base: &str| is_rotated_from(OsStr::new(name), OsStr::new(base));
        for more in ["", ".gz", ".zst", ".gz.tmp", ".zst.tmp"] {
            assert!(is(&format!("a.jsonl.20261122T161004.123Z{more}"), "a.jsonl"), "{more}");
        }
        for name in ["a.jsonl", "a.jsonl.1", "a.jsonl.20261322T161004.123Z", "a.jsonl.20261122T161004.123Z.tmp"] {
            assert!(!is(name, "a.jsonl"), "{name}");
        }
        assert!(!is("aa.jsonl.20261122T161004.123Z", "a.jsonl"));
        let longest = Name { form: Form::Temporary(Extension::Zst), ..Name::plain(OffsetDateTime::UNIX_EPOCH) };
        assert_eq!(longest.of(OsStr::new("a")).unwrap().len(), 1 + LONGEST_SUFFIX);
    }
}
