"""Pure wire codecs: request bytes out, reply bytes in, one file per engine."""
