//! Every object an instance may have.
use super::dress::Dressed;
use crate::ports::ObjectRef;

/// Every object that applying `dressed` may make, the volumes of its StatefulSets among them.
pub(super) fn of(dressed: &[Dressed]) -> Vec<ObjectRef> {
    dressed.iter().map(|d| d.reference.clone()).collect()
}
