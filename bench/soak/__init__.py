"""Ten minutes in which workers are killed and models reloaded under load: nothing may get lost."""
