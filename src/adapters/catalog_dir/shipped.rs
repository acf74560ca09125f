//! The catalog that comes with the broker, compiled in: `chandler dev` works from any directory.
//!
//! Written out by name, so that a change of a file rebuilds the broker; a test compares the list
//! with the folders and says what is missing.

use crate::domain::catalog::Sources;

macro_rules! shipped {
    ($path:literal) => {
        (
            $path,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $path)),
        )
    };
}

const FILES: &[(&str, &str)] = &[
    shipped!("catalog/cassandra/bind.schema.json"),
    shipped!("catalog/cassandra/binding.yaml"),
    shipped!("catalog/cassandra/create.schema.json"),
    shipped!("catalog/cassandra/icon.svg"),
    shipped!("catalog/cassandra/objects/config.yaml"),
    shipped!("catalog/cassandra/objects/datacenter.yaml"),
    shipped!("catalog/cassandra/objects/server.yaml"),
    shipped!("catalog/cassandra/objects/services.yaml"),
    shipped!("catalog/cassandra/offering.yaml"),
    shipped!("catalog/cassandra/process.yaml"),
    shipped!("catalog/cassandra/update.schema.json"),
    shipped!("catalog/cockroachdb/bind.schema.json"),
    shipped!("catalog/cockroachdb/binding.yaml"),
    shipped!("catalog/cockroachdb/create.schema.json"),
    shipped!("catalog/cockroachdb/icon.svg"),
    shipped!("catalog/cockroachdb/objects/certificates.yaml"),
    shipped!("catalog/cockroachdb/objects/config.yaml"),
    shipped!("catalog/cockroachdb/objects/server.yaml"),
    shipped!("catalog/cockroachdb/objects/services.yaml"),
    shipped!("catalog/cockroachdb/offering.yaml"),
    shipped!("catalog/cockroachdb/update.schema.json"),
    shipped!("catalog/couchdb/bind.schema.json"),
    shipped!("catalog/couchdb/binding.yaml"),
    shipped!("catalog/couchdb/create.schema.json"),
    shipped!("catalog/couchdb/icon.svg"),
    shipped!("catalog/couchdb/objects/config.yaml"),
    shipped!("catalog/couchdb/objects/server.yaml"),
    shipped!("catalog/couchdb/objects/services.yaml"),
    shipped!("catalog/couchdb/offering.yaml"),
    shipped!("catalog/couchdb/process.yaml"),
    shipped!("catalog/couchdb/update.schema.json"),
    shipped!("catalog/minio/bind.schema.json"),
    shipped!("catalog/minio/binding.yaml"),
    shipped!("catalog/minio/create.schema.json"),
    shipped!("catalog/minio/icon.svg"),
    shipped!("catalog/minio/objects/config.yaml"),
    shipped!("catalog/minio/objects/server.yaml"),
    shipped!("catalog/minio/objects/services.yaml"),
    shipped!("catalog/minio/offering.yaml"),
    shipped!("catalog/minio/process.yaml"),
    shipped!("catalog/minio/update.schema.json"),
    shipped!("catalog/nats/bind.schema.json"),
    shipped!("catalog/nats/binding.yaml"),
    shipped!("catalog/nats/create.schema.json"),
    shipped!("catalog/nats/icon.svg"),
    shipped!("catalog/nats/objects/config.yaml"),
    shipped!("catalog/nats/objects/server.yaml"),
    shipped!("catalog/nats/objects/services.yaml"),
    shipped!("catalog/nats/offering.yaml"),
    shipped!("catalog/nats/process.yaml"),
    shipped!("catalog/nats/update.schema.json"),
    shipped!("catalog/postgres/bind.schema.json"),
    shipped!("catalog/postgres/binding.yaml"),
    shipped!("catalog/postgres/create.schema.json"),
    shipped!("catalog/postgres/icon.svg"),
    shipped!("catalog/postgres/objects/cluster.yaml"),
    shipped!("catalog/postgres/objects/config.yaml"),
    shipped!("catalog/postgres/objects/server.yaml"),
    shipped!("catalog/postgres/objects/services.yaml"),
    shipped!("catalog/postgres/offering.yaml"),
    shipped!("catalog/postgres/process.yaml"),
    shipped!("catalog/postgres/update.schema.json"),
    shipped!("catalog/redis/bind.schema.json"),
    shipped!("catalog/redis/binding.yaml"),
    shipped!("catalog/redis/create.schema.json"),
    shipped!("catalog/redis/icon.svg"),
    shipped!("catalog/redis/objects/config.yaml"),
    shipped!("catalog/redis/objects/group.yaml"),
    shipped!("catalog/redis/objects/server.yaml"),
    shipped!("catalog/redis/objects/services.yaml"),
    shipped!("catalog/redis/offering.yaml"),
    shipped!("catalog/redis/process.yaml"),
    shipped!("catalog/redis/update.schema.json"),
    shipped!("plans/cassandra/large.yaml"),
    shipped!("plans/cassandra/medium.yaml"),
    shipped!("plans/cassandra/small.yaml"),
    shipped!("plans/cockroachdb/large.yaml"),
    shipped!("plans/cockroachdb/medium.yaml"),
    shipped!("plans/cockroachdb/small.yaml"),
    shipped!("plans/couchdb/large.yaml"),
    shipped!("plans/couchdb/medium.yaml"),
    shipped!("plans/couchdb/small.yaml"),
    shipped!("plans/minio/large.yaml"),
    shipped!("plans/minio/medium.yaml"),
    shipped!("plans/minio/small.yaml"),
    shipped!("plans/nats/large.yaml"),
    shipped!("plans/nats/medium.yaml"),
    shipped!("plans/nats/small.yaml"),
    shipped!("plans/postgres/large.yaml"),
    shipped!("plans/postgres/medium.yaml"),
    shipped!("plans/postgres/small.yaml"),
    shipped!("plans/redis/large.yaml"),
    shipped!("plans/redis/medium.yaml"),
    shipped!("plans/redis/small.yaml"),
];

/// The shipped catalog: seven services with their plans.
pub fn embedded() -> Sources {
    FILES
        .iter()
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
        .collect()
}
