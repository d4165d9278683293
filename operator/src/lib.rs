//! The operator: CeleryBroker resources in, monitors out.
