"""Studies that use the library as any user would: through `import hyperopt_ftp` alone."""
