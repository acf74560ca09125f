mod bind;
mod rotation;
mod update;
