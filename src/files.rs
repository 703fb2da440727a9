//! Files as users have them and as this program writes them: read whole and unpacked, written under a temporary
//! name that becomes the real one when the content is complete.

pub(crate) mod packed;
mod unlzw;
