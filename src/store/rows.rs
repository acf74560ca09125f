//! Rows to domain values and back. A row that does not parse is corruption, told as such.

use super::operations::OperationRow;
use crate::domain::binding::{Binding, BindingState, OtherUser, UserState};
use crate::domain::delivery::Delivery;
use crate::domain::instance::{Instance, InstanceState};
use crate::domain::operation::{Operation, OperationKind, OperationState};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{Error, Row};

/// Columns of `instances` in the order [`instance`] reads them.
pub(super) const INSTANCE: &str = "i.iid, i.platform, i.instance_id, i.attributes, i.state, i.usable, i.context, \
     i.maintenance_version, i.dashboard_url, i.facts, i.endpoints, i.created_at, i.updated_at, i.retained_until";
/// How many there are: what is selected beside them starts here.
pub(super) const INSTANCE_COLUMNS: usize = 14;

/// Columns of `bindings` in the order [`binding`] reads them.
pub(super) const BINDING: &str = "b.bid, b.iid, b.platform, b.binding_id, b.attributes, b.requested, b.state, b.handle, \
     b.residue, b.expires_at, b.renew_before, b.created_at, b.updated_at, b.delivery, b.generation, b.rotations, \
     b.service_account, b.secret_namespace";

/// How many there are.
pub(super) const BINDING_COLUMNS: usize = 18;

/// Columns of `operations` in the order [`operation`] reads them.
pub(super) const OPERATION: &str = "id, kind, iid, bid, offering, target, state, step, failing, attempt, tries, due_at, \
     deadline_at, description, instance_usable, update_repeatable, request_id, created_at, finished_at, owner, failures";

fn corrupt(what: &str, detail: impl std::fmt::Display) -> Error {
    Error::Decode(format!("{what}: {detail}").into())
}

pub(super) fn json<T: DeserializeOwned>(row: &AnyRow, column: usize) -> Result<T, Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|e| corrupt("a JSON column", e))
}

fn json_opt<T: DeserializeOwned>(row: &AnyRow, column: usize) -> Result<Option<T>, Error> {
    let text: Option<String> = row.try_get(column)?;
    text.map(|t| serde_json::from_str(&t).map_err(|e| corrupt("a JSON column", e)))
        .transpose()
}

/// JSON text for a column. The types stored are our own and always serialise.
pub(super) fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|e| Error::Encode(Box::new(e)))
}

fn word<T>(row: &AnyRow, column: usize, parse: fn(&str) -> Option<T>) -> Result<T, Error> {
    let text: String = row.try_get(column)?;
    parse(&text).ok_or_else(|| corrupt("an unknown word", text))
}

fn flag(row: &AnyRow, column: usize) -> Result<bool, Error> {
    Ok(row.try_get::<i64, _>(column)? != 0)
}

fn flag_opt(row: &AnyRow, column: usize) -> Result<Option<bool>, Error> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(|n| n != 0))
}

fn count(row: &AnyRow, column: usize) -> Result<u32, Error> {
    let number: i64 = row.try_get(column)?;
    u32::try_from(number).map_err(|e| corrupt("a number", e))
}

pub(super) fn instance(row: &AnyRow) -> Result<Instance, Error> {
    Ok(Instance {
        iid: row.try_get(0)?,
        platform: row.try_get(1)?,
        instance_id: json(row, 2)?,
        attributes: json(row, 3)?,
        state: word(row, 4, InstanceState::parse)?,
        usable: flag(row, 5)?,
        context: json_opt(row, 6)?,
        maintenance_version: row.try_get(7)?,
        dashboard_url: row.try_get(8)?,
        facts: json(row, 9)?,
        endpoints: json(row, 10)?,
        created_at: row.try_get(11)?,
        updated_at: row.try_get(12)?,
        retained_until: row.try_get(13)?,
    })
}

pub(super) fn binding(row: &AnyRow) -> Result<Binding, Error> {
    Ok(Binding {
        bid: row.try_get(0)?,
        iid: row.try_get(1)?,
        platform: row.try_get(2)?,
        binding_id: json(row, 3)?,
        attributes: json(row, 4)?,
        requested: json(row, 5)?,
        state: word(row, 6, BindingState::parse)?,
        handle: row.try_get(7)?,
        residue: flag(row, 8)?,
        expires_at: row.try_get(9)?,
        renew_before: row.try_get(10)?,
        created_at: row.try_get(11)?,
        updated_at: row.try_get(12)?,
        delivery: word(row, 13, Delivery::parse)?,
        generation: count(row, 14)?,
        rotations: count(row, 15)?,
        service_account: row.try_get(16)?,
        secret_namespace: row.try_get(17)?,
    })
}

pub(super) fn other_user(row: &AnyRow) -> Result<OtherUser, Error> {
    Ok(OtherUser {
        handle: row.try_get(0)?,
        generation: count(row, 1)?,
        state: word(row, 2, UserState::parse)?,
        shown: flag(row, 3)?,
        due_at: row.try_get(4)?,
        refused: row.try_get::<Option<i64>, _>(5)?.is_some(),
    })
}

pub(super) fn operation(row: &AnyRow) -> Result<OperationRow, Error> {
    Ok(OperationRow {
        operation: Operation {
            id: row.try_get(0)?,
            kind: word(row, 1, OperationKind::parse)?,
            iid: row.try_get(2)?,
            bid: row.try_get(3)?,
            offering: row.try_get(4)?,
            target: json_opt(row, 5)?,
            state: word(row, 6, OperationState::parse)?,
            step: row.try_get(7)?,
            failing: row.try_get(8)?,
            attempt: row.try_get(9)?,
            tries: row.try_get(10)?,
            due_at: row.try_get(11)?,
            deadline_at: row.try_get(12)?,
            description: row.try_get(13)?,
            instance_usable: flag_opt(row, 14)?,
            update_repeatable: flag_opt(row, 15)?,
            request_id: row.try_get(16)?,
            created_at: row.try_get(17)?,
            finished_at: row.try_get(18)?,
            failures: row.try_get(20)?,
        },
        owner: row.try_get(19)?,
    })
}
