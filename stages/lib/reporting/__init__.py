"""From evaluated completions to verdict, pictures and pages."""
