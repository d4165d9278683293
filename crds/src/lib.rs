//! The custom resources of group kanchi.io and the generator of their YAML.
