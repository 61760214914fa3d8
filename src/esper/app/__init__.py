"""The application: settings become objects, a task becomes a run, a run becomes a folder."""
