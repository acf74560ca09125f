mod bind;
mod deprovision;
mod quirks;
mod rotation;
mod unbind;
mod update;
