"""Alembic's way in: revisions run on the connection, and in the transaction, that they are handed."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
