//! Token ids.

use crate::error::{Error, Result};

/// Refuses ids that the model has no embedding for.
///
/// # Errors
/// [`Error::TokenId`] with the first such id.
pub fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| usize::try_from(id).is_ok_and(|id| id >= vocab)) {
        Some(&id) => Err(Error::TokenId { id, vocab }),
        None => Ok(()),
    }
}
