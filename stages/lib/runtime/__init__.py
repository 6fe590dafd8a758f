"""What happens around every stage: arguments, params, refusals, whole files, guard, tracking."""
