//! The ground under all other tests: services and the sample application run in restricted namespaces.

use std::time::Duration;

use kanchi_e2e::cluster::setting;
use kanchi_e2e::services::Service;
use kanchi_e2e::shop::ShopOptions;
use kanchi_e2e::wait::seen;
use kanchi_e2e::{scoped, until};

#[tokio::test]
async fn the_sample_application_works_on_both_brokers_and_their_data_outlive_the_pods() -> anyhow::Result<()> {
    scoped("services", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        cluster.start(ns, &[Service::Redis, Service::RabbitMq]).await?;
        let image = setting("KANCHI_CELERY_IMAGE")?;
        let rabbit = ShopOptions::new("on-rabbitmq", &image, "amqp://shop:selling@rabbitmq:5672/");
        let redis = ShopOptions {
            database: 3,
            ..ShopOptions::new("on-redis", &image, "redis://shop:selling@redis:6379/0")
        };
        for options in [rabbit, redis] {
            let shop = cluster.start_shop(ns, &options).await?;
            let mut published = shop.publish(cluster, "success", 5).await?;
            published.extend(shop.publish(cluster, "chain", 3).await?);
            until("all tasks in the journal", Duration::from_secs(30), || async {
                let journal = shop.journal(cluster).await?;
                let returned = |id: &str| journal.iter().any(|entry| entry.id == id && entry.step == "returned");
                Ok(seen(published.iter().all(|task| returned(&task.id)), (), |()| {
                    format!("{journal:?}")
                }))
            })
            .await?;
        }
        let before = cluster.redis_cli(ns, &["-n", "4", "llen", "journal"]).await?;
        cluster.stop(ns, Service::Redis).await?;
        cluster.resume(ns, Service::Redis).await?;
        assert_eq!(before, cluster.redis_cli(ns, &["-n", "4", "llen", "journal"]).await?);
        Ok(())
    })
    .await
}
