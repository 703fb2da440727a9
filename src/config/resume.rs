//! `--resume`: how a run starts, which is no part of what it is.

use std::path::PathBuf;

/// What to do with a run directory that holds a run already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    pub from: ResumeFrom,
    /// Keys that do not touch what was learnt may differ from the plan of before.
    pub with_changes: bool,
}

/// `--resume auto|never|PATH`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ResumeFrom {
    /// Goes on where the run stopped.
    #[default]
    Auto,
    /// Starts a new run; refused where there is one.
    Never,
    /// A checkpoint, or a run directory whose last checkpoint is meant.
    Path(PathBuf),
}

impl std::str::FromStr for ResumeFrom {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            path => Self::Path(path.into()),
        })
    }
}
