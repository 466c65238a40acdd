//! Task modules: settings to loop to artifacts.
