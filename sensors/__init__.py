"""Airflow sensors, triggers, connections and assets."""
