mod bind;
mod deprovision;
mod rotation;
mod unbind;
mod update;
