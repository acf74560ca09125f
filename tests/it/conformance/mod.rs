mod bind;
mod update;
