//! Where a path leads. Two paths may be written differently and lead to one file, by `..`, by links, by mounts: what
//! counts is what would be opened.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The kernel follows as many links on one path.
const MAX_LINKS: usize = 40;
/// Entries of a folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// A file or folder, whatever it is called: no other one has this identity while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    device: u64,
    number: u64,
}

/// The end of a path, all links followed, whether or not something is there.
#[derive(Debug, Clone)]
pub struct Place {
    /// What is there.
    found: Option<Inode>,
    /// The path without links, `.` and `..`.
    real: PathBuf,
    /// Of `real`: the deepest folder that exists.
    folder: PathBuf,
    /// That folder and those above it.
    above: Vec<Inode>,
}

/// A folder with what is in it.
#[derive(Debug)]
pub struct Contents {
    folder: Place,
    /// Its files and folders, and those in its folders.
    entries: Vec<Inode>,
}

impl Inode {
    #[must_use]
    pub fn of(found: &Metadata) -> Self {
        Self { device: found.dev(), number: found.ino() }
    }
}

impl Place {
    /// Where `path` leads now. What cannot be looked at counts as not there.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let (folder, missing) = walk(path);
        let inode = |path: &Path| fs::metadata(path).ok().map(|found| Inode::of(&found));
        Self {
            found: inode(path),
            real: folder.join(missing),
            above: folder.ancestors().filter_map(inode).collect(),
            folder,
        }
    }

    /// Whether both are one file, or would be.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let same_file = self.found.is_some() && self.found == other.found;
        same_file || self.real == other.real || (self.is_beside(other) && self.below() == other.below())
    }

    /// Whether this is what is opened.
    #[must_use]
    pub fn holds(&self, opened: Inode) -> bool {
        self.found == Some(opened)
    }

    /// Its name, and `other`'s, if both are in one folder.
    #[must_use]
    pub fn names_in_one_folder<'a>(&'a self, other: &'a Self) -> Option<(&'a OsStr, &'a OsStr)> {
        let parents = (self.real.parent()?, other.real.parent()?);
        let one = parents.0 == parents.1
            || (self.is_beside(other)
                && self.below().parent().is_some_and(|path| other.below().parent() == Some(path)));
        one.then_some(self.real.file_name().zip(other.real.file_name()))?
    }

    /// Whether the deepest folders that exist are one.
    fn is_beside(&self, other: &Self) -> bool {
        self.above.first().is_some_and(|folder| other.above.first() == Some(folder))
    }

    /// What leads from the deepest folder that exists to the end.
    fn below(&self) -> &Path {
        self.real.strip_prefix(&self.folder).unwrap_or(&self.real)
    }
}

impl Contents {
    /// Of the folder that `path` leads to now, or will.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let mut entries = Vec::new();
        for (entry, found) in list(path) {
            entries.push(Inode::of(&found));
            if found.is_dir() {
                entries.extend(list(&entry).map(|(_, found)| Inode::of(&found)));
            }
        }
        Self { folder: Place::of(path), entries }
    }

    /// Whether `place` is in the folder, or the folder.
    #[must_use]
    pub fn have(&self, place: &Place) -> bool {
        place.real.starts_with(&self.folder.real)
            || self.folder.found.is_some_and(|folder| place.above.contains(&folder))
            || place.found.is_some_and(|found| self.hold(found))
            || place.above.iter().any(|folder| self.entries.contains(folder))
    }

    /// Whether the folder, or something in it, is what is opened.
    #[must_use]
    pub fn hold(&self, opened: Inode) -> bool {
        self.folder.found == Some(opened) || self.entries.contains(&opened)
    }
}

fn list(folder: &Path) -> impl Iterator<Item = (PathBuf, Metadata)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_ENTRIES);
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
}

/// Follows `path`: the deepest folder that exists, without links, and the names that are not folders below it.
fn walk(path: &Path) -> (PathBuf, PathBuf) {
    let backwards = |path: &Path| path.components().rev().map(|c| c.as_os_str().to_owned()).collect::<Vec<OsString>>();
    let mut ahead = backwards(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let (mut folder, mut missing) = (PathBuf::from("/"), PathBuf::new());
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        match Path::new(&name).components().next() {
            Some(Component::RootDir) => (folder, missing) = (PathBuf::from("/"), PathBuf::new()),
            // What is not there is taken for what it will be.
            Some(Component::ParentDir) => _ = missing.pop() || folder.pop(),
            Some(Component::Normal(_)) if missing.as_os_str().is_empty() => {
                let next = folder.join(&name);
                match link_or_folder(&next) {
                    Ok(Some(target)) if links < MAX_LINKS => {
                        links += 1;
                        ahead.extend(backwards(&target));
                    }
                    Ok(None) => folder = next,
                    _ => missing.push(name),
                }
            }
            Some(Component::Normal(_)) => missing.push(name),
            _ => {}
        }
    }
    (folder, missing)
}

/// Where a link leads; `None`: it is a folder.
fn link_or_folder(path: &Path) -> io::Result<Option<PathBuf>> {
    let found = fs::symlink_metadata(path)?;
    match (found.is_symlink(), found.is_dir()) {
        (true, _) => fs::read_link(path).map(Some),
        (_, true) => Ok(None),
        _ => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// The folder that a path of a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn one_place_has_many_names_whether_or_not_something_is_there() {
        let home = TempDir::new().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        symlink("a", at("linked")).unwrap();
        symlink(at("a/b"), at("absolute")).unwrap();
        symlink("new.jsonl", at("a/b/dangling")).unwrap();
        symlink("round", at("round")).unwrap();
        let names = ["a/b/new.jsonl", "a/./b/../b/new.jsonl", "linked/b/new.jsonl", "absolute/new.jsonl"];
        let more = ["absolute/../b/new.jsonl", "a/b/dangling", "a/none/../b/new.jsonl"];
        for there in [false, true] {
            if there {
                fs::write(at("a/b/new.jsonl"), "").unwrap();
                fs::hard_link(at("a/b/new.jsonl"), at("hard")).unwrap();
                assert!(Place::of(&at("hard")).is(&Place::of(&at("linked/b/new.jsonl"))));
            }
            for name in names.iter().chain(&more) {
                let (one, other) = (Place::of(&at(names[0])), Place::of(&at(name)));
                assert!(one.is(&other) && other.is(&one), "{name}: {one:?} {other:?}");
            }
            for name in ["a/new.jsonl", "a/b/new.json", "linked/new.jsonl", "round", "round/new.jsonl", "a/b"] {
                assert!(!Place::of(&at(names[0])).is(&Place::of(&at(name))), "{name}");
            }
        }
    }

    #[test]
    fn names_are_compared_within_one_folder_only() {
        let home = TempDir::new().unwrap();
        let at = |name: &str| Place::of(&home.path().join(name));
        fs::create_dir(home.path().join("a")).unwrap();
        symlink("a", home.path().join("linked")).unwrap();
        let name = OsStr::new;
        assert_eq!(at("a/x").names_in_one_folder(&at("linked/y")), Some((name("x"), name("y"))));
        assert_eq!(at("new/x").names_in_one_folder(&at("a/../new/y")), Some((name("x"), name("y"))));
        assert_eq!(at("new/x").names_in_one_folder(&at("other/y")), None);
        assert_eq!(at("a/x").names_in_one_folder(&at("y")), None);
    }

    #[test]
    fn what_is_in_a_folder_is_known_by_every_name() {
        let home = TempDir::new().unwrap();
        let at = |name: &str| home.path().join(name);
        let have = |folder: &str, name: &str| Contents::of(&at(folder)).have(&Place::of(&at(name)));
        assert!(have("journal", "journal") && have("journal", "journal/x") && have("journal", "none/../journal/x"));
        fs::create_dir_all(at("journal/damaged-1")).unwrap();
        fs::write(at("journal/damaged-1/journal.db"), "").unwrap();
        fs::write(at("journal/mark"), "").unwrap();
        fs::hard_link(at("journal/mark"), at("hard")).unwrap();
        fs::hard_link(at("journal/damaged-1/journal.db"), at("deeper")).unwrap();
        symlink("journal", at("linked")).unwrap();
        symlink("journal/mark", at("soft")).unwrap();
        for name in ["journal/new", "journal/new/er", "linked/new", "linked/mark", "hard", "deeper", "soft", "linked"] {
            assert!(have("journal", name), "{name}");
        }
        for name in ["journal.jsonl", "other/journal", "journal-2/x", "."] {
            assert!(!have("journal", name), "{name}");
        }
    }
}
