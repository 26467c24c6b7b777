"""Who starts the processes of a run, watches them and ends them: launch, Ray's task runner, deaths, the reaper."""
