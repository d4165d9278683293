//! RabbitMQ and Redis behind one seam: event stream, queues, remote control.
