//! The hidden folder beside a target in which its shards are made. Each part is synced and the folder gets its
//! real name last, so a shard directory is either whole or not there, and what a killed preparation had finished
//! is found again.

use std::path::{Path, PathBuf};

use crate::files::{self, Held, Lock};
use crate::{Error, Result};

/// Held by the process that writes the hidden directory.
const LOCK: &str = "lock";
/// Says what the finished parts were made from.
const RECIPE: &str = "plan";

/// The hidden directory of a target, this process's own.
pub struct Workplace {
    target: PathBuf,
    pub(super) root: PathBuf,
    /// What does not go into the shards.
    pub(crate) work: PathBuf,
    /// What will be the shard directory.
    pub(super) dir: PathBuf,
    /// The folder stays when this is dropped: what is finished in it is found again.
    pub(super) keep: bool,
    _lock: Held,
}

impl Workplace {
    /// Claims the hidden directory of `target`. What an earlier process left there stays if it was made
    /// by the same `recipe`, else it goes.
    ///
    /// # Errors
    /// `Error::Data` where `target` is there already, another process is writing it, or nothing can be
    /// written beside it.
    pub fn claim(target: &Path, recipe: &str) -> Result<Self> {
        check_free(target)?;
        let root = partial_of(target)?;
        let (work, dir) = (root.join("work"), root.join("shards"));
        let make = || std::fs::create_dir_all(&root).map_err(|cause| Error::io("made", &root, cause));
        make()?;
        let lock = match lock(&root) {
            // the process that had it has just finished, and taken the folder with it
            Err(_) if !root.exists() => make().and_then(|()| lock(&root))?,
            lock => lock?,
        };
        check_free(target).inspect_err(|_| {
            // another process has made it while this one came here: nothing is left to do
            let _ = std::fs::remove_dir_all(&root);
        })?;
        let resumed = std::fs::read_to_string(work.join(RECIPE)).is_ok_and(|old| old == recipe);
        if !resumed {
            for old in [&work, &dir].into_iter().filter(|old| old.exists()) {
                std::fs::remove_dir_all(old).map_err(|cause| Error::io("removed", old, cause))?;
            }
        }
        for new in [&work, &dir] {
            std::fs::create_dir_all(new).map_err(|cause| Error::io("made", new, cause))?;
            files::sweep(new);
        }
        files::write(&work.join(RECIPE), recipe.as_bytes())?;
        Ok(Self { target: target.to_owned(), root, work, dir, keep: false, _lock: lock })
    }

    /// Gives the shards their name and removes the rest.
    pub(super) fn publish(mut self) -> Result<()> {
        let failed = |path: &Path, cause| Error::io("written", path, cause);
        files::sync(&self.dir)?;
        if self.target.exists() {
            // An empty directory, as `check_free` saw.
            std::fs::remove_dir(&self.target).map_err(|cause| failed(&self.target, cause))?;
        }
        std::fs::rename(&self.dir, &self.target).map_err(|cause| failed(&self.target, cause))?;
        self.keep = false;
        match self.target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => files::sync(parent),
            None => files::sync(Path::new(".")),
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if !self.keep {
            // Best effort: what stays behind is removed by the next prepare with the same target.
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// Removes what a process that was killed after its last step left beside a finished target.
pub fn tidy(target: &Path) {
    if let Ok(root) = partial_of(target)
        && root.exists()
        && lock(&root).is_ok()
    {
        // Best effort, as above.
        let _ = std::fs::remove_dir_all(&root);
    }
}

/// Refuses a target that holds something.
///
/// # Errors
/// `Error::Data` that says what to do.
pub fn check_free(target: &Path) -> Result<()> {
    let taken = match std::fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => target.exists(),
    };
    if taken {
        return Err(Error::data(format!(
            "{}: already exists; remove it or choose another --out",
            target.display()
        )));
    }
    Ok(())
}

/// `dir/.name.partial` for `dir/name`.
fn partial_of(target: &Path) -> Result<PathBuf> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::config(format!("--out {}: must name a directory to make", target.display())))?;
    Ok(target.with_file_name(format!(".{}.partial", name.to_string_lossy())))
}

/// Locks the hidden directory. Where the file system has no locks it cannot be known to be ours.
fn lock(root: &Path) -> Result<Held> {
    let taken = |who: &str| {
        let place = root.display();
        Error::data(format!("{place}: another prepare is writing it ({who}): wait for it or stop it"))
    };
    match files::lock(&root.join(LOCK))? {
        Lock::Held(held) => Ok(held),
        Lock::Busy(who) => Err(taken(&who)),
        Lock::Unknown(_) => Err(taken("or was: this file system has no locks; remove the folder if none is")),
    }
}
