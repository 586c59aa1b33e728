//! stub
use crate::error::Result;
pub(crate) fn run() -> Result {
    Ok(())
}
