//! Files as users have them and as this program writes them: read whole, unpacked or mapped, with an account of
//! every byte; written under a temporary name and renamed when complete; locked against a second process.

mod json;
mod ledger;
mod lock;
mod map;
mod packed;
mod strange;
mod target;
mod unlzw;
mod whole;

pub use json::numbers_as_text;
pub use ledger::{Fate, Ledger};
pub use lock::{Held, Lock, host, lock};
pub use map::{crc32, map, map_range, open};
pub use packed::{BOM, Begun, Opened, Packing, begin, broken, read_counted, refuse_pipe};
pub use strange::{lone_returns, wide};
pub use target::{Target, folder_of, target};
pub use whole::{read, read_text, refuse_input, sweep, sync, write, write_by};
