//! A store whose user may not create roles: monitors share one, and the resource says so.

use std::path::PathBuf;

use k8s_openapi::api::events::v1::Event;
use kanchi_crds::{CeleryBroker, ConditionType};
use kanchi_store::StoreUrl;
use kube::api::ListParams;
use serde_json::json;

use crate::support::eventually;
use crate::support::operator::Operator;
use crate::support::world::{PATIENCE, World, connected};

/// As long, and of the same characters, as the ones that the operator makes.
const PASSWORD: &str = "canary0shared0role0of0all0tenant";
const ROTATED: &str = "canary1shared1role1of1all1tenant";

impl World {
    fn owner(&self) -> StoreUrl {
        StoreUrl::parse(&std::fs::read_to_string(self.store_url_file()).unwrap()).unwrap()
    }

    fn shared_role(&self) -> String {
        format!("kanchi_m_shared_{}", self.namespace.replace('-', "_"))
    }

    fn shared_password_file(&self) -> PathBuf {
        self.store_url_file().with_file_name("shared-password")
    }

    /// Sets the password as an administrator does: in Postgres and in the file.
    fn set_shared_password(&self, verb: &str, password: &str) {
        let statement = format!("{verb} role {} login password '{password}'", self.shared_role());
        self.cluster.postgres.sql("postgres", &statement).unwrap();
        std::fs::write(self.shared_password_file(), format!("{password}\n")).unwrap();
    }

    async fn start_sharing(&self, replica: &str) -> Operator {
        let name = format!("--store-shared-role={}", self.shared_role());
        let file = format!("--store-shared-password-file={}", self.shared_password_file().display());
        Operator::start(self, replica, &[&name, &file]).await
    }

    async fn store_url_of(&self, broker: &str) -> String {
        self.mounted(broker, "store-url").await
    }
}

fn on(host: &str) -> serde_json::Value {
    json!({ "connection": { "url": format!("redis://{host}/0") } })
}

#[tokio::test(flavor = "multi_thread")]
async fn without_roles_of_their_own_monitors_share_one_and_the_condition_says_so() {
    let world = World::new("shared").await;
    let owner = world.owner().role().to_owned();
    let sql = |sql: &str| world.cluster.postgres.sql("postgres", sql).unwrap();
    sql(&format!("alter role {owner} nocreaterole"));
    let operator = Operator::start(&world, "one", &[]).await;
    world.apply("orders", on("a")).await;
    world.apply("mails", on("b")).await;
    eventually("both ways out are named", PATIENCE, || async {
        let message = world
            .condition("orders", ConditionType::Ready, "False", "StoreNotPrepared")
            .await;
        let named = message.contains("createrole") && message.contains("store.sharedRole");
        if named { Ok(()) } else { Err(message) }
    })
    .await;
    operator.stop().await.unwrap();

    world.set_shared_password("create", PASSWORD);
    let operator = world.start_sharing("two").await;
    for broker in ["orders", "mails"] {
        world
            .condition(broker, ConditionType::StoreIsolated, "False", "SharedRole")
            .await;
        world
            .condition(broker, ConditionType::Ready, "True", "AsExpected")
            .await;
        let url = StoreUrl::parse(&world.store_url_of(broker).await).unwrap();
        assert_eq!(url.role(), world.shared_role());
        let key = world.broker(broker).await.status.unwrap().store_key.unwrap();
        assert!(url.expose().ends_with(&format!("kanchi.broker%3D{key}")));
        world.reporter(broker).await.heartbeat(&connected()).await.unwrap();
        world
            .condition(broker, ConditionType::StoreReachable, "True", "Writing")
            .await;
    }
    eventually("the metric counts both", PATIENCE, || async {
        let metrics = operator.metrics();
        let counted = metrics
            .lines()
            .any(|line| line == "kanchi_operator_store_shared_roles 2");
        if counted { Ok(()) } else { Err(metrics) }
    })
    .await;
    rotated(&world).await;
    deleted(&world, "mails", "orders").await;
    shown_nowhere(&world, &operator).await;
    operator.stop().await.unwrap();

    // With the right, the next leader gives each broker a role of its own, and never the password that all know.
    sql(&format!("alter role {owner} createrole"));
    let operator = world.start_sharing("three").await;
    world
        .condition("orders", ConditionType::StoreIsolated, "True", "OwnRole")
        .await;
    let url = eventually("the Secret follows", PATIENCE, || async {
        let url = world.store_url_of("orders").await;
        if url.contains("kanchi_m_shared") {
            Err("still shared")
        } else {
            Ok(url)
        }
        .map_err(str::to_owned)
    })
    .await;
    assert!(
        !url.contains(ROTATED) && !url.contains("kanchi.broker"),
        "a password of its own"
    );
    world.reporter("orders").await.heartbeat(&connected()).await.unwrap();
    operator.stop().await.unwrap();
}

async fn rotated(world: &World) {
    world.set_shared_password("alter", ROTATED);
    for broker in ["orders", "mails"] {
        eventually("the new password reaches the Secret", PATIENCE, || async {
            let url = world.store_url_of(broker).await;
            if url.contains(ROTATED) {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await;
        world.reporter(broker).await.heartbeat(&connected()).await.unwrap();
    }
}

async fn deleted(world: &World, gone: &str, stays: &str) {
    let url = StoreUrl::parse(&world.store_url_of(gone).await).unwrap();
    world.delete::<CeleryBroker>(gone).await;
    world.await_gone::<CeleryBroker>(gone).await;
    eventually("the broker is retired", PATIENCE, || async {
        let retention = kanchi_store::RetentionPolicy::default();
        match kanchi_store::StoreReporter::connect(&url, retention).await {
            Ok(_) => Err("it still reports".to_owned()),
            Err(error) if error.kind() == kanchi_store::ErrorKind::Forbidden => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
    world.reporter(stays).await.heartbeat(&connected()).await.unwrap();
}

async fn shown_nowhere(world: &World, operator: &Operator) {
    let objects = [
        serde_json::to_string(&world.broker("orders").await).unwrap(),
        serde_json::to_string(&world.api::<Event>().list(&ListParams::default()).await.unwrap().items).unwrap(),
        operator.metrics(),
        world.cluster.audit_log(),
    ];
    for text in objects {
        assert!(!text.contains(PASSWORD) && !text.contains(ROTATED), "{text}");
    }
}
