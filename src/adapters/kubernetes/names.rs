//! Names and labels of what the broker makes in a cluster. They are how it finds its own again, so they never change.

/// Says that an object is the broker's own.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "chandler");
/// Label: the instance's own name, on every object and every pod of it.
pub const INSTANCE: &str = "chandler.osb/instance";
/// Label: the binding's own name, on Secrets in applications' namespaces.
pub const BINDING: &str = "chandler.osb/binding";
/// Label: the offering's name.
pub const OFFERING: &str = "chandler.osb/offering";
/// Label: the plan's name.
pub const PLAN: &str = "chandler.osb/plan";
/// Annotation: hash of the object as it was applied; what is seen without it is older.
pub const HASH: &str = "chandler.osb/hash";
/// Annotation of a Service: the names of its ports that are endpoints, separated by commas.
pub const ENDPOINTS: &str = "chandler.osb/endpoints";
/// Annotation of a Service: names of its ports that only the monitoring namespace reads.
pub const METRICS: &str = "chandler.osb/metrics";
/// Who applies, for server-side apply.
pub const FIELD_MANAGER: &str = "chandler";
/// Phase of what surrounds an instance: before all its own objects.
pub const SURROUNDINGS: u16 = 0;
/// Phase of what lets applications in: after the credentials are prepared.
pub const OPENING: u16 = u16::MAX;

/// The namespace of an instance that has one of its own.
pub fn namespace(iid: &str) -> String {
    format!("osb-{iid}")
}

/// The iid of a namespace that [`namespace`] named.
pub fn iid_of(namespace: &str) -> Option<&str> {
    namespace
        .strip_prefix("osb-")
        .filter(|iid| crate::domain::names::is_name(iid))
}
