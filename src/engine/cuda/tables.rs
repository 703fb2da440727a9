//! Tables that the optimiser's launches read, kept on the device: a run needs the same few in every step.

use std::cell::RefCell;
use std::sync::Arc;

use super::buffer::CudaBuf;
use super::device::Device;
use super::upload::upload_now;
use crate::Result;

/// Tables that are kept: a run needs one for the norm and one for the update.
pub const KEPT: usize = 8;

/// One table, on the host and on the device.
struct Table {
    words: Vec<u32>,
    on_device: CudaBuf<u32>,
}

/// The tables needed so far.
#[derive(Default)]
pub struct Tables(RefCell<Vec<Table>>);

impl Tables {
    /// The address of `words` on the device.
    pub fn get(&self, device: &Arc<Device>, words: Vec<u32>) -> Result<u64> {
        let mut tables = self.0.borrow_mut();
        let place = match tables.iter().position(|table| table.words == words) {
            Some(place) => place,
            None => {
                if tables.len() == KEPT {
                    tables.remove(0);
                }
                let on_device = CudaBuf::zeros(device, words.len())?;
                upload_now(device, &words, on_device.span("slices", 0..words.len())?.0)?;
                tables.push(Table { words, on_device });
                tables.len() - 1
            }
        };
        let on_device = &tables[place].on_device;
        Ok(on_device.span("a table", 0..on_device.len())?.0)
    }
}
