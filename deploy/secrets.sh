#!/bin/sh
# The service `secrets` of docker-compose.yml: runs before the others, and leaves the broker's password where they read
# it. It is RABBITMQ_PASSWORD; where that is not set, the one of the last time, and at the first a random one.
set -eu
cd /secrets

if [ -n "$RABBITMQ_PASSWORD" ]; then
  password=$RABBITMQ_PASSWORD
elif [ -s password ]; then
  password=$(cat password)
elif [ -d /broker/mnesia ]; then
  # A broker keeps the user of its first start, and before there was this service the password was a default.
  password=pixel
  echo "the broker is older than its password's file, so its password stays the old default; docs/OPERATIONS.md changes it"
else
  password=$(od -A n -N 24 -t x1 /dev/urandom | tr -d ' \n')
fi

# Whole or not at all. Everybody in a container that has this volume may read it, whatever its user's number is.
umask 022
leave() {
  printf '%s' "$2" > "$1.new"
  mv "$1.new" "$1"
}

urls=
for broker in $BROKERS; do
  urls=$urls${urls:+,}amqp://$RABBITMQ_USER:$password@$broker:5672/%2f
done
leave amqp-url "$urls"
leave advanced.config "[{rabbit, [{default_user, <<\"$RABBITMQ_USER\">>}, {default_pass, <<\"$password\">>}]}]."
leave password "$password"
