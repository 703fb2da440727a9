//! Files as users have them and as this program writes them: read whole, unpacked or mapped; written under a
//! temporary name and renamed when complete; locked against a second process.

mod lock;
mod map;
mod packed;
mod target;
mod unlzw;
mod whole;

pub use lock::{Held, Lock, host, lock};
pub use map::{crc32, map, map_range, open};
pub use packed::{BOM, Opened, Packing, broken, head, read_unpacked};
pub use target::{Target, folder_of, target};
pub use whole::{read, read_text, refuse_input, sweep, sync, write, write_by};
