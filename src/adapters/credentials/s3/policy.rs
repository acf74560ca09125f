//! What a binding may do, as a policy document; one policy per binding, named like its user.
//!
//! A policy of its own, not one per role: it can be stated whole at each issue, goes with the user, and is shared with nobody
//! whose rights could change by accident. What must stay true here:
//! - a prefix is plain text: no `*` or `?` and no `${…}`, which the server would take for patterns and variables;
//! - nobody may open a way in that outlives its own keys: no access keys of one's own making, no new password, no policy
//!   on the bucket (which would let in anybody without keys), and the bucket itself stays.

use crate::ports::{Grant, PortError, PortResult};
use serde_json::{Value, json};

const READ: &[&str] = &["s3:GetObject", "s3:GetObjectTagging", "s3:GetObjectVersion"];

const WRITE: &[&str] = &[
    "s3:PutObject",
    "s3:PutObjectTagging",
    "s3:DeleteObject",
    "s3:DeleteObjectTagging",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
];

/// What an owner may do to objects besides reading and writing.
const OWN_OBJECTS: &[&str] = &[
    "s3:DeleteObjectVersion",
    "s3:GetObjectRetention",
    "s3:PutObjectRetention",
    "s3:GetObjectLegalHold",
    "s3:PutObjectLegalHold",
    "s3:BypassGovernanceRetention",
];

/// What an owner of the whole bucket may do to the bucket.
const CONFIGURE: &[&str] = &[
    "s3:GetBucketVersioning",
    "s3:PutBucketVersioning",
    "s3:GetLifecycleConfiguration",
    "s3:PutLifecycleConfiguration",
    "s3:GetBucketTagging",
    "s3:PutBucketTagging",
    "s3:GetBucketNotification",
    "s3:PutBucketNotification",
    "s3:GetBucketObjectLockConfiguration",
    "s3:PutBucketObjectLockConfiguration",
];

/// The objects a binding is limited to by its parameter `prefix`; empty for all.
pub(super) fn prefix(grant: &Grant) -> PortResult<&str> {
    let Some(value) = grant.params.get("prefix") else {
        return Ok("");
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-/".contains(&b);
    match value.as_str() {
        Some(prefix) if (1..=128).contains(&prefix.len()) && prefix.bytes().all(plain) => Ok(prefix),
        _ => Err(PortError::invalid(
            "prefix must be 1 to 128 characters of letters, digits and _ . - /",
        )),
    }
}

/// The policy of a binding in `bucket`, whose name was checked.
pub(super) fn document(bucket: &str, grant: &Grant) -> PortResult<Value> {
    let prefix = prefix(grant)?;
    let actions: Vec<&str> = match grant.role.as_str() {
        "owner" => [READ, WRITE, OWN_OBJECTS].concat(),
        "readwrite" => [READ, WRITE].concat(),
        "readonly" => READ.to_vec(),
        role => {
            return Err(PortError::invalid(format!(
                "There is no role {role:?}: use owner, readwrite or readonly."
            )));
        }
    };
    let bucket_arn = format!("arn:aws:s3:::{bucket}");
    let mut list = json!({
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:ListBucketVersions"],
        "Resource": [bucket_arn],
    });
    let mut on_bucket = vec!["s3:GetBucketLocation"];
    if prefix.is_empty() {
        // Servers take no condition on the prefix for this one.
        on_bucket.push("s3:ListBucketMultipartUploads");
        if grant.role == "owner" {
            on_bucket.extend(CONFIGURE);
        }
    } else {
        list["Condition"] = json!({"StringLike": {"s3:prefix": [format!("{prefix}*")]}});
    }
    Ok(json!({
        "Version": "2012-10-17",
        "Statement": [
            list,
            {"Effect": "Allow", "Action": on_bucket, "Resource": [bucket_arn]},
            {"Effect": "Allow", "Action": actions, "Resource": [format!("{bucket_arn}/{prefix}*")]},
            // Users may do some of these to themselves unless they are denied.
            {"Effect": "Deny", "Action": ["admin:*"]},
        ],
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::domain::names;
    use crate::ports::PortErrorKind;

    fn grant(role: &str, params: &Value) -> Grant {
        Grant {
            bid: names::bid("p", "i", "b"),
            second: false,
            role: role.to_owned(),
            params: params.as_object().unwrap().clone(),
            expires_at: None,
        }
    }

    fn text(role: &str, params: &Value) -> String {
        document("data", &grant(role, params)).unwrap().to_string()
    }

    #[test]
    fn a_prefix_cannot_become_a_pattern_or_a_variable() {
        for good in ["a", "shop/", "a/b.c-d_1/"] {
            assert_eq!(prefix(&grant("owner", &json!({"prefix": good}))).unwrap(), good);
        }
        let long = "a".repeat(129);
        let texts = [
            "",
            "*",
            "a*",
            "a?",
            "${aws:username}",
            "a b",
            "a\"",
            "a\n",
            "ä",
            "a%2e",
            &long,
        ];
        let others = [json!(7), json!(null), json!(["a"])];
        for bad in texts.iter().map(|t| json!(t)).chain(others) {
            let error = document("data", &grant("owner", &json!({"prefix": bad}))).unwrap_err();
            assert_eq!(error.kind, PortErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn roles_differ_as_they_say() {
        let everything = json!({});
        for role in ["owner", "readwrite", "readonly"] {
            let text = text(role, &everything);
            assert!(text.contains("s3:GetObject\"") && text.contains("arn:aws:s3:::data/*"));
            assert_eq!(text.contains("s3:PutObject\""), role != "readonly");
            assert_eq!(text.contains("s3:DeleteObject\""), role != "readonly");
            assert_eq!(text.contains("s3:PutBucketVersioning"), role == "owner");
            assert!(text.contains(r#"{"Action":["admin:*"],"Effect":"Deny"}"#));
            for never in ["s3:*", "BucketPolicy", "DeleteBucket", "CreateBucket"] {
                assert!(!text.contains(never), "{role}: {never}");
            }
        }
        assert!(document("data", &grant("admin", &everything)).is_err());
    }

    #[test]
    fn a_scope_closes_listing_objects_and_settings() {
        let text = text("owner", &json!({"prefix": "shop/"}));
        assert!(text.contains(r#""Condition":{"StringLike":{"s3:prefix":["shop/*"]}}"#));
        assert!(text.contains("arn:aws:s3:::data/shop/*") && !text.contains("arn:aws:s3:::data/*"));
        assert!(!text.contains("PutBucket") && !text.contains("MultipartUploads"));
    }
}
