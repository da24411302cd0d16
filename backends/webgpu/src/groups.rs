//! Bind groups, kept: a launch on the operands of an earlier one binds what that one bound.

use crate::inner::locked;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A step's number, and the address of every binding.
type Key = Arc<[u64]>;

/// More than so many are forgotten at once: launches on ever new operands must not keep all of them.
const MOST: usize = 1 << 14;

/// Bind groups by what they bind.
#[derive(Default)]
pub(crate) struct Groups(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    groups: HashMap<Key, wgpu::BindGroup>,
    /// Which groups bind a block of memory, or belong to a step.
    users: HashMap<u64, Vec<Key>>,
}

impl Groups {
    /// The group of that key, made where it is new. `owners`: the step's number, and the base of every block that is bound.
    pub(crate) fn get(
        &self,
        key: &[u64],
        owners: impl Iterator<Item = u64>,
        make: impl FnOnce() -> Result<wgpu::BindGroup, wgpu::Error>,
    ) -> Result<wgpu::BindGroup, wgpu::Error> {
        if let Some(group) = locked(&self.0).groups.get(key) {
            return Ok(group.clone());
        }
        // making and dropping take longer than anything else here: not under the lock
        let group = make()?;
        let mut forgotten = Kept::default();
        let mut kept = locked(&self.0);
        if kept.groups.len() >= MOST {
            std::mem::swap(&mut *kept, &mut forgotten);
        }
        let key: Key = key.into();
        for owner in owners {
            kept.users.entry(owner).or_default().push(key.clone());
        }
        kept.groups.insert(key, group.clone());
        drop(kept);
        Ok(group)
    }

    /// Forgets the groups of a block of memory or a step that goes.
    pub(crate) fn forget(&self, owner: u64) {
        let mut kept = locked(&self.0);
        let gone: Vec<_> = kept.users.remove(&owner).unwrap_or_default();
        let dropped: Vec<_> = gone.iter().filter_map(|key| kept.groups.remove(key)).collect();
        for key in &gone {
            // the other owners' lists, where they are not gone themselves
            for other in key.iter() {
                if let Some(list) = kept.users.get_mut(other) {
                    list.retain(|k| !Arc::ptr_eq(k, key));
                }
            }
        }
        drop(kept);
        drop(dropped);
    }
}
